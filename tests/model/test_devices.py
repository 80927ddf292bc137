"""A model on another device stays there: every step runs on the meta device, which has no values.

A tensor that was made on the CPU and meets them raises, as it would on a GPU. And nothing reads a
value back: a host synchronisation would raise too.
"""

import pytest
import torch

from mingcore.config.model_config import MingConfig
from mingcore.model.formats import resolve
from mingcore.model.headers import read_headers
from mingcore.model.ming import declare_parts
from mingcore.model.sources import FileTensors
from mingcore.model.weights import plan_load

META = torch.device("meta")


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def parts(golden_folder, request):
    config = MingConfig.from_folder(golden_folder)
    source = FileTensors(read_headers(golden_folder), str(golden_folder))
    formats = resolve(None, request.param, META, request.param)
    plan = plan_load(source, lambda w: declare_parts(w, config), device=META, formats=formats)
    with torch.no_grad():
        yield plan.read()


def on_meta(t, *shape):
    assert t.device == META and tuple(t.shape) == shape
    return t


def test_llm(parts):
    llm = parts["llm"]
    ids = torch.zeros(2, 7, dtype=torch.int64, device=META)
    mask = torch.ones(2, 7, dtype=torch.int64, device=META)
    hidden, state = llm(llm.embed(ids), audio_mask=mask, image_mask=mask, attention_mask=mask)
    on_meta(hidden, 2, 7, 256)
    places = torch.zeros(3, 2, 1, dtype=torch.int64, device=META)
    hidden, state = llm(llm.embed(ids[:, :1]), state, positions=places)
    on_meta(llm.logits(hidden), 2, 1, 512)
    for _ in range(80):
        hidden, state = llm(llm.embed(ids[:, :1]), state)
    on_meta(hidden, 2, 1, 256)
    state.reset([1])
    on_meta(state.clone().lengths, 2)


def test_audio(parts):
    vae, pool = parts["vae"], parts["pool"]
    wave = torch.zeros(2, 3300, device=META)
    mean, std = vae.encode(wave)
    on_meta(vae.sample_posterior(mean, std, torch.zeros_like(mean)), 2, 11, 64)
    state = None
    for last in (False, False, True):
        mean, _, state = vae.encode_stream(wave, state, last)
        on_meta(mean, 2, 11 if last else 10, 64)
    unified, semantic = vae.unify(mean[:, :10])
    on_meta(pool(unified), 2, 2, 256)
    for _ in range(20):
        unified, semantic = vae.unify(mean[:, :5], semantic)
    on_meta(unified, 2, 5, 64)
    decoder = None
    for last, length in ((False, 1120), (False, 1600), (True, 2080)):
        samples, decoder = vae.decode(mean[:, :5], decoder, last)
        on_meta(samples, 2, length)


def test_flow(parts):
    flow, stop = parts["flow"], parts["stop_head"]
    cond = torch.zeros(2, 256, device=META)
    history, noise = torch.zeros(2, 5, 64, device=META), torch.zeros(11, 2, 5, 64, device=META)
    for guidance in (0.0, 2.0, [1.0, 0.0], torch.ones(2, device=META)):
        on_meta(flow.sample(cond, history, noise, guidance=guidance), 2, 5, 64)
    t = torch.zeros(2, device=META)
    on_meta(flow.velocity(noise[0], t, cond, history), 2, 5, 64)
    on_meta(stop(cond.to(flow.activation_dtype)), 2)

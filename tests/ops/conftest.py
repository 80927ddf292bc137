import pytest

from mingcore.ops._core import registry


@pytest.fixture
def clean_registry(monkeypatch):
    """The registry, restored afterwards; MINGCORE_BACKEND unset."""
    registry.entries()
    for name in ("_entries", "_load_errors"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))
    monkeypatch.setattr(registry, "_chains", {})
    monkeypatch.delenv("MINGCORE_BACKEND", raising=False)
    return registry

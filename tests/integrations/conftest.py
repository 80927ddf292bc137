"""The transformers library: installed, or in a folder that REFERENCE_TRANSFORMERS names.

These tests are slow by its import alone, and skipped where there is none. Several versions: run
them once for each, with `pip install --no-deps --target` folders.
"""

import importlib
import os
import sys
import warnings

import pytest
import torch


@pytest.fixture(scope="session")
def transformers():
    folder = os.environ.get("REFERENCE_TRANSFORMERS")
    if folder:
        sys.path.insert(0, folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = importlib.import_module("transformers")
    except ImportError as error:
        pytest.skip(f"no usable transformers: {error}")
    finally:
        if folder:
            sys.path.remove(folder)
    if int(found.__version__.split(".")[0]) < 5:
        pytest.skip(f"transformers {found.__version__}; the experts interface came with 5")
    return found


@pytest.fixture(autouse=True)
def for_inference():
    with torch.no_grad():
        yield

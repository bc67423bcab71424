"""Tiny datasets and nnU-Net's variables for the training tests."""

import pytest


@pytest.fixture
def nnunet(tmp_path, monkeypatch):
    """nnU-Net's folders in a temporary place; data are loaded in the training process, which makes it repeatable."""
    from tests.training.tiny import folders_in

    folders = folders_in(tmp_path)
    for name, folder in zip(
        ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"),
        (folders.raw, folders.preprocessed, folders.results),
        strict=True,
    ):
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    return folders


@pytest.fixture(autouse=True)
def _one_thread():
    """Threads of a tiny network wait for each other more than they work, and the more so on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

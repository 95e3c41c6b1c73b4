"""Tokens come out of a split as they stand in its file, whether it is kept on the device or read ahead in a thread."""
import numpy as np
import pytest
import torch

from common.training import batches


@pytest.fixture(params=[('kept', 'uint16'), ('read ahead', 'uint16'), ('kept', 'uint32'), ('read ahead', 'uint32')])
def reader(request, tmp_path, monkeypatch):
    """A Reader of 100 tokens, 8 at a time, and the tokens: up to the largest that their dtype holds."""
    where, dtype = request.param
    tokens = np.linspace(0, np.iinfo(dtype).max, 100).astype(dtype)
    tokens.tofile(tmp_path / 'train.bin')
    if where == 'read ahead':
        monkeypatch.setattr(batches, 'ON_DEVICE', 100)
    return batches.Reader(str(tmp_path), 'train', {'dtype': dtype}, 8, 'cpu'), tokens.astype(np.int64)


def test_random_starts_are_those_of_philox_and_below_the_end():
    starts = batches.train_starts(seed=3, i=5, shape=(2, 4), places=90, block_size=8, shuffle=False)
    expected = np.random.Philox(key=[3, 0], counter=[0, 0, 0, 5]).random_raw(8) % 90
    assert np.array_equal(starts, expected.reshape(2, 4)) and starts.dtype == np.int64


@pytest.mark.parametrize('places, block_size', [(1, 4), (3, 4), (7, 4), (89, 1), (1000, 1), (1003, 8), (8, 8)])
def test_a_shuffled_epoch_has_every_window_once_in_an_order_of_its_own(places, block_size):
    windows = max(1, places // block_size)
    drawn = [batches.train_starts(1, i, (1, 5), places, block_size, True) for i in range(2 * windows)]
    drawn = np.concatenate(drawn, axis=None)
    assert drawn.min() >= 0 and drawn.max() < places
    epochs = drawn.reshape(-1, windows)
    assert len(epochs) == 10 and all((np.diff(np.sort(epoch)) == block_size).all() for epoch in epochs)
    if windows > 10:
        assert len({tuple(epoch // block_size) for epoch in epochs}) == 10
        assert len({start % block_size for start in drawn}) > 1 or block_size == 1
        assert not np.array_equal(drawn[:5], batches.train_starts(2, 0, (5,), places, block_size, True)), 'another seed'


def test_shuffled_sequences_of_a_text_of_billions_never_overlap():
    starts = [batches.train_starts(1, i, (4, 128), 3_000_000_001, 1024, True) for i in range(200)]
    assert np.diff(np.sort(np.concatenate(starts, axis=None))).min() >= 1024


def test_windows_are_the_file_s_tokens(reader):
    ours, tokens = reader
    assert (ours.tokens is None) == (ours.thread is not None)
    starts = np.array([[0, 5], [92, 17]])
    ids, is_target = ours.sequences(starts)
    assert ids.dtype == torch.int64 and is_target.all()
    assert np.array_equal(ids.numpy(), tokens[starts[..., None] + np.arange(8)])


def test_what_is_past_the_end_does_not_count(reader):
    ours, tokens = reader
    ids, is_target = ours.sequences(np.array([97, 100]))
    assert ids[0, :3].tolist() == tokens[97:].tolist()
    assert is_target[0].tolist() == [True] * 3 + [False] * 5 and not is_target[1].any()


def test_what_the_mask_leaves_out_does_not_count(reader, tmp_path):
    ours, tokens = reader
    mask = np.arange(100, dtype=np.uint8) % 3 == 0
    mask.tofile(tmp_path / 'train_mask.bin')
    dtype = ours.open().dtype.name
    ids, is_target = batches.Reader(str(tmp_path), 'train', {'dtype': dtype}, 8, 'cpu').sequences(np.array([[10, 20]]))
    assert np.array_equal(ids[0], [tokens[10:18], tokens[20:28]])
    assert np.array_equal(is_target[0], [mask[10:18], mask[20:28]])


def test_what_was_read_ahead_is_what_is_given_if_it_is_asked_for(reader):
    ours, tokens = reader
    ours.read_ahead(np.array([3, 4]))
    assert ours.sequences(np.array([50]))[0][0, 0] == tokens[50]  # an evaluation in between
    if ours.thread is not None:
        ours.ahead[1].result()
        ours.read = None  # it has been read already
    assert ours.sequences(np.array([3, 4]))[0][:, 0].tolist() == [tokens[3], tokens[4]]


def test_what_goes_wrong_in_the_thread_is_not_lost(reader, tmp_path):
    ours, _ = reader
    if ours.thread is None:
        pytest.skip('nothing is read here')
    (tmp_path / 'train.bin').unlink()
    ours.read_ahead(np.array([3]))
    with pytest.raises(FileNotFoundError):
        ours.sequences(np.array([3]))


def test_random_numbers_are_a_function_of_seed_stream_and_iteration():
    first = batches.random_numbers(1, 0, 5, 4)
    assert np.array_equal(first, batches.random_numbers(1, 0, 5, 4))
    assert all(not np.array_equal(first, other) for other in (
        batches.random_numbers(2, 0, 5, 4), batches.random_numbers(1, 1, 5, 4), batches.random_numbers(1, 0, 6, 4)))

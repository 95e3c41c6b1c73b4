"""What experiments at the same time have for themselves."""
import pytest

from common.experiments import slots


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr('subprocess.getoutput', lambda command: 'GPU 0: a\nGPU 1: b')


@pytest.mark.parametrize('gpus, processes, expected', [
    ('', 1, [None]), ('0', 1, ['0']), ('1,0', 1, ['1', '0']), ('0,1', 2, ['0,1']), ('00', 1, ['0'])])
def test_each_slot_has_its_gpus(two_gpus, gpus, processes, expected):
    assert slots.find(gpus, processes) == expected


@pytest.mark.parametrize('gpus, processes, expected', [
    ('0,0', 1, 'names a GPU twice; to have two experiments on each: --jobs=2'), ('0,00', 1, 'twice'),
    ('2', 1, 'knows 2 GPUs'), ('a', 1, 'not like 0,1'), ('0,', 1, 'not like'), ('-1', 1, 'not like'),
    ('٠', 1, 'not like'), ('0', 2, 'not a multiple'), ('0', 0, 'below 1')])
def test_gpus_that_cannot_be_are_refused(two_gpus, gpus, processes, expected):
    with pytest.raises(ValueError, match=expected):
        slots.find(gpus, processes)


def test_the_cores_are_divided_unless_the_user_has_done_that(monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS')
    monkeypatch.setattr('os.sched_getaffinity', lambda pid: range(8), raising=False)
    assert [slots.threads(count) for count in (1, 2, 3, 8, 9)] == [8, 4, 2, 1, 1]
    monkeypatch.setenv('OMP_NUM_THREADS', '3')
    assert slots.threads(2) is None

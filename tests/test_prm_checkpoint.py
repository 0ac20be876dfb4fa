import json
import random
import resource

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from data.errors import UserError
from prm.checkpoint import list_checkpoints, load_latest, save_checkpoint, save_model
from prm.randomness import process_state


def trained(width: int = 8) -> dict:
    """A layer and its optimiser after one update, so that the optimiser has moments."""
    layer = torch.nn.Linear(width, 4)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    layer(torch.randn(3, width)).square().sum().backward()
    optimizer.step()
    return {"model": layer, "optimizer": optimizer}


def test_a_checkpoint_restores_weights_moments_and_random_states(tmp_path):
    parts = trained()
    save_checkpoint(tmp_path, 7, parts)
    expected = (random.random(), np.random.rand(), torch.rand(3))
    fresh = trained()
    assert load_latest(tmp_path, fresh) == 7
    torch.testing.assert_close(fresh["model"].weight, parts["model"].weight, rtol=0, atol=0)
    torch.testing.assert_close(
        fresh["optimizer"].state_dict()["state"], parts["optimizer"].state_dict()["state"], rtol=0, atol=0
    )
    assert (random.random(), np.random.rand()) == expected[:2]
    torch.testing.assert_close(torch.rand(3), expected[2], rtol=0, atol=0)


class Stream:
    """A part that every process has its own of."""

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def state_dict(self) -> dict:
        return {"value": self.value}

    def load_state_dict(self, state: dict) -> None:
        self.value = state["value"]


def two_processes(tmp_path) -> None:
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(process_state({"stream": Stream(seed)}))
    save_checkpoint(tmp_path, 1, {"shared": Stream(7)}, per_process=states)


def test_each_process_gets_its_own_streams(tmp_path):
    two_processes(tmp_path)
    shared, own = Stream(), Stream()
    load_latest(tmp_path, {"shared": shared}, rank=1, world=2, own={"stream": own})
    assert (shared.value, own.value) == (7, 2)
    drawn = torch.rand(1)
    torch.manual_seed(2)
    torch.testing.assert_close(drawn, torch.rand(1), rtol=0, atol=0)


def test_another_number_of_processes_takes_what_is_shared_and_says_so(tmp_path):
    two_processes(tmp_path)
    shared, own = Stream(), Stream(5)
    with pytest.warns(UserWarning, match="saved by 2 processes and continued by 3"):
        load_latest(tmp_path, {"shared": shared}, rank=2, world=3, own={"stream": own})
    assert (shared.value, own.value) == (7, 5)


def test_only_the_newest_are_kept(tmp_path):
    parts = trained()
    for iteration in (1, 2, 10):
        save_checkpoint(tmp_path, iteration, parts, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["00000002", "00000010"]


def test_without_a_checkpoint_nothing_is_loaded(tmp_path):
    assert load_latest(tmp_path, trained()) is None


@pytest.mark.parametrize("damage", ["flip a byte", "truncate", "no manifest"])
def test_a_damaged_newest_falls_back_to_the_one_before(tmp_path, damage):
    parts = trained()
    save_checkpoint(tmp_path, 1, parts)
    before = parts["model"].weight.detach().clone()
    with torch.no_grad():
        parts["model"].weight.add_(1)
    newest = save_checkpoint(tmp_path, 2, parts)
    content = bytearray((newest / "model.pt").read_bytes())
    if damage == "flip a byte":
        content[len(content) // 2] ^= 1
        (newest / "model.pt").write_bytes(content)
    elif damage == "truncate":
        (newest / "model.pt").write_bytes(content[:-10])
    else:
        (newest / "manifest.json").unlink()
    with pytest.warns(UserWarning, match="00000002: damaged"):
        assert load_latest(tmp_path, parts) == 1
    torch.testing.assert_close(parts["model"].weight, before, rtol=0, atol=0)


def test_a_checkpoint_of_another_version_is_called_so_and_not_damaged(tmp_path):
    save_checkpoint(tmp_path, 1, trained())
    manifest = tmp_path / "checkpoints" / "00000001" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 2', '"format": 1'))
    with pytest.raises(UserError, match=r"00000001: .* another version .*format 1.*another output_dir"):
        load_latest(tmp_path, trained())


def test_all_damaged_is_an_error_not_a_fresh_start(tmp_path):
    newest = save_checkpoint(tmp_path, 1, trained())
    (newest / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.warns(UserWarning), pytest.raises(UserError, match="none of the 1 checkpoints is intact"):
        load_latest(tmp_path, trained())


def test_another_models_checkpoint_names_the_tensor_and_loads_nothing(tmp_path):
    save_checkpoint(tmp_path, 1, trained(width=8))
    other = trained(width=6)
    before = other["model"].weight.detach().clone()
    with pytest.raises(UserError, match=r"model\.weight has shape \[4, 8\] there, \[4, 6\] here"):
        load_latest(tmp_path, other)
    torch.testing.assert_close(other["model"].weight, before, rtol=0, atol=0)


def test_a_missing_part_is_named(tmp_path):
    save_checkpoint(tmp_path, 1, trained())
    with pytest.raises(UserError, match="no part 'critic'"):
        load_latest(tmp_path, {"critic": torch.nn.Linear(2, 2)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_never_reach_a_checkpoint(tmp_path, value):
    parts = trained()
    save_checkpoint(tmp_path, 1, parts)
    with torch.no_grad():
        parts["model"].bias[1] = value
    with pytest.raises(UserError, match=r"model\.bias holds NaN or infinity"):
        save_checkpoint(tmp_path, 2, parts)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["00000001"]


@pytest.fixture
def full_disk():
    """Lets no file grow beyond 8 KiB: the operating system refuses the write, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))

    yield fill
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_last_checkpoint_and_no_rubbish(tmp_path, full_disk):
    parts = trained(width=2000)
    save_checkpoint(tmp_path, 1, parts)
    full_disk()
    with pytest.raises(UserError, match="cannot save"):
        save_checkpoint(tmp_path, 2, parts)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000001"]
    assert load_latest(tmp_path, parts) == 1


def test_saving_an_iteration_again_replaces_it_whole(tmp_path):
    parts = trained()
    save_checkpoint(tmp_path, 3, parts)
    with torch.no_grad():
        parts["model"].weight.fill_(5.0)
    save_checkpoint(tmp_path, 3, parts)
    fresh = trained()
    assert load_latest(tmp_path, fresh) == 3
    assert float(fresh["model"].weight.detach().min()) == 5.0
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000003"]


def test_a_checkpoint_moved_aside_is_found_when_its_successor_never_arrived(tmp_path):
    # The process died between the two renames of a replacement.
    folder = save_checkpoint(tmp_path, 3, trained())
    folder.rename(folder.with_name("00000003.replaced"))
    assert load_latest(tmp_path, trained()) == 3


def test_unfinished_temporary_folders_are_ignored_and_swept(tmp_path):
    (tmp_path / "checkpoints" / ".00000009.tmp").mkdir(parents=True)
    assert load_latest(tmp_path, trained()) is None
    save_checkpoint(tmp_path, 1, trained())
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000001"]


def test_a_checkpoint_runs_no_pickled_code(tmp_path):
    folder = save_checkpoint(tmp_path, 1, trained())
    torch.save({"weight": print}, folder / "model.pt")
    manifest = json.loads((folder / "manifest.json").read_text())
    from hashlib import sha256

    content = (folder / "model.pt").read_bytes()
    manifest["files"]["model.pt"] = {"bytes": len(content), "sha256": sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Exception, match="[Ww]eights.only"):
        load_latest(tmp_path, trained())


def tiny_lm() -> Qwen2ForCausalLM:
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )


def test_save_model_writes_a_folder_that_from_pretrained_reads_and_can_be_replaced(tmp_path):
    for _ in range(2):
        model = tiny_lm()
        save_model(tmp_path / "model", model)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(loaded.lm_head.weight, model.lm_head.weight, rtol=0, atol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_save_model_refuses_nan_and_folders_that_hold_something_else(tmp_path):
    model = tiny_lm()
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="no model folder"):
        save_model(tmp_path, model)
    assert (tmp_path / "thesis.tex").read_text() == "precious"
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(UserError, match=r"model\.norm\.weight holds NaN"):
        save_model(tmp_path / "model", model)


def test_save_model_on_a_full_disk_keeps_the_old_model(tmp_path, full_disk):
    old = tiny_lm()
    save_model(tmp_path / "model", old)
    full_disk()
    with pytest.raises(UserError, match="cannot save"):
        save_model(tmp_path / "model", tiny_lm())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(loaded.lm_head.weight, old.lm_head.weight, rtol=0, atol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]

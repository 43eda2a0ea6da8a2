"""Against a dense Hessian, and through the command."""

import json

import pytest
import torch
from filelock import FileLock
from torch import nn
from torch.func import functional_call, hessian

from sam_bench import curvature, sharpness
from sam_bench.curvature import Effort
from tests.command import TINY


@pytest.fixture
def problem():
    """A small net with BatchNorm whose statistics are not those of the batch, and images."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3))
    )
    images, labels = torch.randn(300, 1, 6, 6), torch.randint(3, (300,))
    for _ in range(20):
        model(torch.randn(64, 1, 6, 6) * 2 + 1)
    return model, images, labels


def dense(model, images, labels):
    """∇²L over all parameters, in float64, by torch.func."""
    model.eval()
    params = {name: p.detach().double() for name, p in model.named_parameters()}
    buffers = {name: b.double() if b.is_floating_point() else b for name, b in model.named_buffers()}
    shapes = [p.shape for p in params.values()]

    def loss(flat):
        parts = flat.split([shape.numel() for shape in shapes])
        given = {name: part.view(shape) for name, part, shape in zip(params, parts, shapes, strict=True)}
        return nn.functional.cross_entropy(functional_call(model, {**given, **buffers}, (images.double(),)), labels)

    return hessian(loss)(torch.cat([p.flatten() for p in params.values()]))


def batches(images, labels):
    return list(zip(images.split(128), labels.split(128), strict=True))


def test_eigenvalues_and_trace_are_those_of_the_dense_hessian(problem):
    model, images, labels = problem
    matrix = dense(model, images, labels)
    expected = torch.linalg.eigvalsh(matrix).flip(0)[:3].tolist()
    params = list(model.parameters())
    found, trace, error = curvature.hessian(model, params, batches(images, labels), Effort(300, 3, 1e-5, 400))
    assert found == pytest.approx(expected, rel=1e-3)
    assert trace == pytest.approx(matrix.trace().item(), abs=3 * error)
    assert 0 < error < 0.1 * abs(trace)


def test_the_error_of_the_trace_is_its_standard_error(problem):
    model, images, labels = problem
    matrix = dense(model, images, labels)
    _, _, few = curvature.hessian(model, list(model.parameters()), batches(images, labels), Effort(300, 1, 1e-2, 100))
    _, _, many = curvature.hessian(model, list(model.parameters()), batches(images, labels), Effort(300, 1, 1e-2, 400))
    # of signs: the variance of one sample is 2 Σ_{i≠j} H_ij²
    one = (2 * (matrix.square().sum() - matrix.diagonal().square().sum())).sqrt().item()
    assert few == pytest.approx(one / 10, rel=0.25)
    assert many == pytest.approx(one / 20, rel=0.15)


def test_measures_are_the_formulas_and_leave_the_model_alone(problem, monkeypatch):
    model, images, labels = problem
    monkeypatch.setitem(curvature.EFFORTS, "cheap", Effort(300, 1, 1e-2, 4, line=5, plane=3, surface_images=300))
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = curvature.measure(model, images, labels, "cheap")
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())

    model.eval()

    def loss(x=images, y=labels):
        return nn.functional.cross_entropy(model(x), y)

    def rise(x, y, direction, rho):
        at = loss(x, y)
        grads = torch.autograd.grad(at, list(model.parameters()))
        ways = [direction(p, g) for p, g in zip(model.parameters(), grads, strict=True)]
        norm = torch.cat([(w[1]).flatten() for w in ways]).norm()
        with torch.no_grad():
            for p, (way, _) in zip(model.parameters(), ways, strict=True):
                p.add_(rho * way / norm)
            risen = loss(x, y)
            model.load_state_dict(before)
        return (risen - at).item()

    plain = lambda p, g: (g, g)  # noqa: E731
    scaled = lambda p, g: (p.detach() ** 2 * g, p.detach() * g)  # noqa: E731
    assert found["loss"] == pytest.approx(loss().item(), rel=1e-5)
    assert found["loss_rise"] == pytest.approx(rise(images, labels, plain, 0.05), rel=1e-3)
    assert found["adaptive_sharpness"] == pytest.approx(rise(images, labels, scaled, 0.5), rel=1e-3)
    micro = [rise(x, y, plain, 0.05) for x, y in batches(images, labels)[:2]]  # the third is not full
    assert found["m_sharpness"] == pytest.approx(sum(micro) / 2, rel=1e-3)
    assert found["line"]["distance"] == [-1, -0.5, 0, 0.5, 1]
    assert found["line"]["loss"][2] == pytest.approx(found["loss"], rel=1e-5)
    assert found["plane"]["loss"][1][1] == pytest.approx(found["loss"], rel=1e-5)
    assert found["plane"]["loss"][1][2] == pytest.approx(found["line"]["loss"][4], rel=1e-4)


def test_directions_have_the_norms_of_the_filters(problem):
    model, *_ = problem
    params = list(model.parameters())
    for p, d in zip(params, curvature.random_direction(params, 0), strict=True):
        if p.ndim < 2:
            assert not d.any()
        else:
            torch.testing.assert_close(d.flatten(1).norm(dim=1), p.detach().flatten(1).norm(dim=1))
    assert not torch.equal(curvature.random_direction(params, 0)[0], curvature.random_direction(params, 1)[0])


def result_of(command, name):
    (folder,) = (folder for folder in command.folders() if f"-{name}-" in str(folder))
    return folder, json.loads((folder / "result.json").read_text())


def test_measured_after_training_added_later_and_by_the_command(command, capfd):
    assert command("-m", *TINY, "optimizer=sgd,sam", "sharpness=cheap")[0] == 0
    folder, sgd = result_of(command, "sgd")
    assert sgd["sharpness"]["images"] == 256
    assert sgd["sharpness"]["lambda_max"] > 0
    assert "largest eigenvalue of ∇²L" in command(*TINY, "optimizer=sgd")[1]

    # the same run without it is the same run; asked for again, it is measured from the checkpoint, to the same digits
    del sgd["sharpness"]
    (folder / "result.json").write_text(json.dumps(sgd))
    status, out, err = command(*TINY, "optimizer=sgd", "sharpness=cheap")
    assert (status, "finished before" in out) == (0, True), err
    again = result_of(command, "sgd")[1]["sharpness"]
    (folder / "result.json").write_text(json.dumps(sgd))
    sharpness.main([str(folder)])
    assert "λ max" in capfd.readouterr().out
    once_more = result_of(command, "sgd")[1]["sharpness"]
    assert {**again, "seconds": 0} == {**once_more, "seconds": 0}

    (folder / "last.pt").unlink()
    (folder / "result.json").write_text(json.dumps(sgd))
    with pytest.raises(SystemExit):
        sharpness.main([str(folder), str(folder.parent)])
    lines = capfd.readouterr().err.splitlines()
    assert "has no last.pt" in lines[0]
    assert "is not a run folder" in lines[1]


SMALL_VIT = ["model=timm", "model.architecture=test_vit", "+model.kwargs.patch_size=4"]


def test_attention_has_a_second_derivative_too(command):
    status, _, err = command(*TINY, "trainer.epochs=1", "optimizer=sgd", *SMALL_VIT, "sharpness=cheap")
    assert status == 0, err
    assert result_of(command, "sgd")[1]["sharpness"]["trace_samples"] == 10


def test_it_changes_no_weight_of_a_run_beside_it(command):
    """Of two seeds at once, one is measured while the other may still train."""
    words = [*TINY, "optimizer=rst", "trainer.seeds=2"]
    command(*words, "sharpness=cheap")
    command(*words, f"runs={command.runs}/plain")
    for seed in (0, 1):
        one, other = sorted(command.runs.rglob(f"seed-{seed}/last.pt"))
        weights = [torch.load(path, weights_only=True)["model"] for path in (one, other)]
        assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_full_measures_are_not_replaced_by_cheap_ones(command, monkeypatch):
    monkeypatch.setitem(curvature.EFFORTS, "full", Effort(64, 1, 1e-1, 2, line=5, plane=3, surface_images=32))
    words = [*TINY, "trainer.epochs=1", "optimizer=sgd"]
    command(*words, "sharpness=full")
    assert command(*words, "sharpness=cheap")[0] == 0
    folder, result = result_of(command, "sgd")
    assert result["sharpness"]["kind"] == "full"
    (folder / "last.pt").unlink()
    (folder / "result.json").write_text(json.dumps({**result, "sharpness": None}))
    status, out, err = command(*words, "sharpness=cheap")
    assert (status, "finished before" in out) == (0, True)
    assert err.startswith("warning: sharpness=cheap: ")
    assert "has no last.pt" in err


def test_the_command_leaves_fuller_measures_and_runs_in_use(command, monkeypatch, capfd):
    monkeypatch.setitem(curvature.EFFORTS, "full", Effort(64, 1, 1e-1, 2, line=5, plane=3, surface_images=32))
    words = [*TINY, "trainer.epochs=1", "optimizer=sgd"]
    command(*words, "sharpness=full")
    folder, result = result_of(command, "sgd")
    sharpness.main([str(folder)])
    assert result_of(command, "sgd")[1] == result
    (folder / "result.json").write_text(json.dumps({**result, "sharpness": None}))
    with FileLock(folder / ".lock"), pytest.raises(SystemExit, match="2"):
        sharpness.main([str(folder)])
    assert "another process uses this run folder" in capfd.readouterr().err


def test_a_measure_that_is_not_finite_leaves_the_result(command, monkeypatch):
    monkeypatch.setattr(curvature, "hessian", lambda *_: ([float("nan")], 1.0, 1.0))
    status, _, err = command(*TINY, "trainer.epochs=1", "optimizer=sgd", "sharpness=cheap")
    assert status == 0
    assert "warning: sharpness=cheap: lambda_max is not finite; the result is kept" in err
    assert command(*TINY, "trainer.epochs=1", "optimizer=sgd")[0] == 0


def test_a_net_without_second_derivatives_keeps_its_result(command, monkeypatch):
    def broken(*_):
        raise RuntimeError("derivative for aten::op is not implemented")

    monkeypatch.setattr(curvature, "hessian", broken)
    status, _, err = command(*TINY, "trainer.epochs=1", "optimizer=sgd", "sharpness=cheap")
    assert status == 0
    assert err == "warning: sharpness=cheap: derivative for aten::op is not implemented; the result is kept\n"
    assert "sharpness" not in result_of(command, "sgd")[1]
    monkeypatch.undo()
    assert command(*TINY, "trainer.epochs=1", "optimizer=sgd", "sharpness=cheap")[0] == 0
    assert result_of(command, "sgd")[1]["sharpness"]["lambda_max"] > 0

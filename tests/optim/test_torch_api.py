"""What torch users expect beside the contract: settings in parameter groups, and errors that show the right line."""

import copy
import re
import weakref

import pytest
import torch
from torch import nn
from torch.optim import SGD

from sam_bench.optim import ASAM, GSAM, RST, SAM, ArgumentError, Constant, LookSAM
from sam_bench.optim.closure import SampleClosure
from sam_bench.testing.dispatch import operations_around
from sam_bench.testing.problem import TOTAL, problem, same, weights
from tests.optim.methods import build


def split(model: nn.Module) -> tuple[list, list]:
    """Normalization layers' parameters, and the others."""
    norms = [q for m in model.modules() if isinstance(m, nn.BatchNorm2d) for q in m.parameters()]
    return norms, [q for q in model.parameters() if all(q is not other for other in norms)]


def epsilon_of(optimizer, p) -> dict[str, torch.Tensor]:
    """The perturbation of one step, by parameter name."""
    seen = []
    closure = p.closure(optimizer, before=lambda: seen.append([q.detach().clone() for q in p.model.parameters()]))
    optimizer.step(closure)
    names = [name for name, _ in p.model.named_parameters()]
    return {name: b - a for name, a, b in zip(names, *seen, strict=True)}


def gradient(p) -> dict[str, torch.Tensor]:
    q = p.copy()
    nn.functional.cross_entropy(q.model(q.images[0]), q.labels[0]).backward()
    return {name: w.grad for name, w in q.model.named_parameters()}


def test_sam_on_perturbs_normalization_layers_alone(device):
    """ρ = 0 on the others: they are not perturbed, and not part of the norm."""
    p = problem(device, dtype=torch.float64)
    norms, others = split(p.model)
    g = gradient(p)
    base = SGD([{"params": norms}, {"params": others, "rho": 0.0}], lr=0.1)
    epsilon = epsilon_of(SAM(base, rho=0.3, model=p.model), p)
    norm_names = [name for name, q in p.model.named_parameters() if any(q is other for other in norms)]
    norm = nn.utils.get_total_norm([g[name] for name in norm_names])
    for name, e in epsilon.items():
        expected = 0.3 * g[name] / norm if name in norm_names else torch.zeros_like(e)
        torch.testing.assert_close(e, expected)


def test_each_group_has_its_rho(device):
    p = problem(device, dtype=torch.float64)
    norms, others = split(p.model)
    g = gradient(p)
    base = SGD([{"params": norms, "rho": 0.1}, {"params": others}], lr=0.1)
    epsilon = epsilon_of(SAM(base, rho=0.3, model=p.model), p)
    norm = nn.utils.get_total_norm(list(g.values()))
    for name, q in p.model.named_parameters():
        rho = 0.1 if any(q is other for other in norms) else 0.3
        torch.testing.assert_close(epsilon[name], rho * g[name] / norm)


def test_groups_that_agree_cost_no_operation(device):
    counts = []
    for groups in (1, 2):
        p = problem(device)
        norms, others = split(p.model)
        parts = [{"params": norms + others}] if groups == 1 else [{"params": norms}, {"params": others}]
        optimizer = SAM(SGD(parts, lr=0.1, fused=True), model=p.model)
        p.run(optimizer, 3)
        counts.append(len(operations_around(optimizer, p.closure(optimizer), 3)))
    one, two = counts
    assert two == one + 1  # the base's own step of the second group


def test_no_group_is_perturbed(device):
    """SAM with ρ = 0 still makes its two passes, and takes the base's step."""
    p, q = problem(device), problem(device)
    sam, base = SAM(SGD(p.model.parameters(), lr=0.1), rho=0, model=p.model), SGD(q.model.parameters(), lr=0.1)
    p.run(sam, TOTAL)
    for t in range(TOTAL):
        q.closure(base, t)()
        base.step()
    assert same(weights(p), weights(q))
    assert sam.propagations == 2 * TOTAL


def test_a_scheduler_may_change_rho(device):
    p = problem(device, dtype=torch.float64)
    optimizer = SAM(SGD(p.model.parameters(), lr=0.1), rho=0.3, model=p.model)
    norms = []
    for rho in (0.3, 0.2, 0.0, 0.1):
        optimizer.param_groups[0]["rho"] = rho
        norms.append(nn.utils.get_total_norm(list(epsilon_of(optimizer, p).values())).item())
    assert norms == pytest.approx([0.3, 0.2, 0.0, 0.1])
    state = optimizer.state_dict()
    assert state["param_groups"][0]["rho"] == 0.1
    other = SAM(SGD(problem(device).model.parameters(), lr=0.1), rho=0.3)
    assert other.radius(other.param_groups[0]) == 0.3
    other.load_state_dict(state)
    assert other.radius(other.param_groups[0]) == 0.1


def test_a_group_added_later_gets_the_default(device):
    p = problem(device)
    norms, others = split(p.model)
    optimizer = SAM(SGD(norms, lr=0.1), rho=0.3)
    optimizer.add_param_group({"params": others[:1]})
    optimizer.add_param_group({"params": others[1:], "rho": 0.7})
    assert [optimizer.radius(group) for group in optimizer.param_groups] == [0.3, 0.3, 0.7]
    with pytest.raises(ValueError, match="Invalid rho: -1"):
        optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "rho": -1})


def test_wrappers_of_one_base_keep_their_own_rho(device):
    model = problem(device).model
    norms, others = split(model)
    base = SGD([{"params": norms, "rho": 0.7}, {"params": others}], lr=0.1)
    one, other = SAM(base, rho=0.3), ASAM(base, rho=0.1, model=model)
    for optimizer, rho in ((one, 0.3), (other, 0.1), (copy.deepcopy(one), 0.3)):
        assert [optimizer.radius(group) for group in optimizer.param_groups] == [0.7, rho]
    base.add_param_group({"params": [torch.zeros(1, requires_grad=True)]})
    assert one.radius(one.param_groups[2]) == 0.3


def test_a_base_with_a_rho_of_its_own_keeps_it(device):
    """Adadelta's rho is a decay."""
    p = problem(device, dtype=torch.float64)
    optimizer = SAM(torch.optim.Adadelta(p.model.parameters(), rho=0.9), rho=0.3, model=p.model)
    assert nn.utils.get_total_norm(list(epsilon_of(optimizer, p).values())).item() == pytest.approx(0.3)
    assert optimizer.param_groups[0]["rho"] == 0.9


def test_gsam_has_its_radii_in_the_groups(device):
    p = problem(device, dtype=torch.float64)
    norms, others = split(p.model)
    base = SGD([{"params": norms, "rho_min": 0.0, "rho_max": 0.0}, {"params": others}], lr=0.1)
    optimizer = GSAM(base, rho_min=0.1, rho_max=0.3, model=p.model)
    optimizer.param_groups[0]["lr"] = 0.05  # whose learning rate it follows
    epsilon = epsilon_of(optimizer, p)
    assert nn.utils.get_total_norm(list(epsilon.values())).item() == pytest.approx(0.2)
    assert all(not epsilon[n].any() for n, q in p.model.named_parameters() if any(q is other for other in norms))


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (lambda m: SAM(m.parameters(), SGD, rho=0.05), "SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05,"),
        (
            lambda m: ASAM(m.parameters(), torch.optim.AdamW, rho=2, lr=0.01, weight_decay=0.1),
            "ASAM(torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1), rho=2, model=model)",
        ),
        (lambda m: LookSAM(list(m.parameters())), "LookSAM(torch.optim.SGD(model.parameters(), lr=0.1), model=model)"),
        (lambda m: SAM(base=3), "SAM(torch.optim.SGD(model.parameters(), lr=0.1), model=model)"),
    ],
)
def test_the_habit_of_other_packages_is_shown_the_right_line(wrong, line, device):
    model = problem(device).model
    with pytest.raises(TypeError, match=re.escape(line)) as raised:
        wrong(model)
    (correct,) = re.findall(r"ready optimizer: (.*)\)$", str(raised.value))
    assert eval(correct, {"SAM": SAM, "ASAM": ASAM, "LookSAM": LookSAM, "torch": torch, "model": model}).base


def test_other_wrong_calls(device):
    model = problem(device).model
    base = SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="positional"):
        SAM(base, 0.05, model)  # the third one could be anything
    with pytest.raises(TypeError, match="Invalid closure: None"):
        SAM(base).step()
    with pytest.raises(ArgumentError, match=re.escape("Invalid rho: True (a number in [0, ∞))")):
        SAM(base, rho=True)
    with pytest.raises(ArgumentError, match=r"Invalid inner: SGD .*it is not a method"):
        RST(base, Constant(0.5), 10)


def test_errors_carry_the_name_of_the_argument(device):
    with pytest.raises(ArgumentError) as raised:
        LookSAM(SGD(problem(device).model.parameters(), lr=0.1), k=0)
    assert (raised.value.name, raised.value.value) == ("k", 0)


def test_a_plain_closure_is_no_sample_closure(device):
    p = problem(device)
    assert not isinstance(p.closure(SGD(p.model.parameters(), lr=0.1)), SampleClosure)


def test_zero_grad_before_the_step_may_keep_the_tensors(device):
    """set_to_none=False leaves tensors of zeros, which are no accumulated gradients."""
    p = problem(device)
    optimizer = SAM(SGD(p.model.parameters(), lr=0.1), model=p.model)
    for t in range(3):
        optimizer.zero_grad(set_to_none=False)
        optimizer.step(p.closure(optimizer, t, zeroes=False))
    with pytest.raises(RuntimeError, match="the closure added to gradients that were there before"):
        optimizer.step(p.closure(optimizer, 3, zeroes=False))


def test_zero_grad_of_a_wrapper_is_known_to_the_method_inside(device):
    p = problem(device)
    optimizer = RST(SAM(SGD(p.model.parameters(), lr=0.1), model=p.model), Constant(0.5), 20, seed=3)
    for t in range(20):
        optimizer.zero_grad(set_to_none=False)
        optimizer.step(p.closure(optimizer, t, zeroes=False))
    assert 0 < optimizer.sharpness_aware_steps < 20


def test_a_parameter_that_a_pass_does_not_reach_may_be_zeroed_in_place(device):
    p = problem(device)
    other = nn.Parameter(torch.zeros(3, device=device))
    other.grad = torch.ones_like(other)
    optimizer = SAM(SGD([*p.model.parameters(), other], lr=0.1), model=p.model)

    def closure():
        optimizer.zero_grad(set_to_none=False)
        loss = nn.functional.cross_entropy(p.model(p.images[0]), p.labels[0])
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert not other.any()


@pytest.mark.parametrize("returned", [None, 0.5, (torch.zeros(()), 1)], ids=["nothing", "a float", "a tuple"])
def test_a_closure_that_returns_no_tensor_is_refused(returned, device):
    p = problem(device)
    optimizer = SAM(SGD(p.model.parameters(), lr=0.1), model=p.model)
    p.closure(optimizer)()
    with pytest.raises(TypeError, match=f"it returned {type(returned).__name__} .it must return the loss, a tensor"):
        optimizer.step(lambda: (optimizer.zero_grad(), returned)[1])


def test_a_missing_base_is_refused():
    for make in (lambda: SAM(None), lambda: SAM(base=None)):
        with pytest.raises(TypeError, match="Invalid base: NoneType"):
            make()


@pytest.mark.parametrize("name", ["s2sam", "asyncsam"])
def test_a_kept_gradient_is_that_of_the_previous_step_alone(name, device):
    """A parameter that had no gradient in it is not perturbed, and neither is one that is frozen."""
    a, b = (torch.ones(1, device=device, requires_grad=True) for _ in range(2))
    optimizer, seen = build(name, nn.ParameterList([a, b]), SGD([a, b], lr=0.1)), []

    def step(uses):
        def closure():
            optimizer.zero_grad()
            seen.append((a.item(), b.item()))
            loss = a.sum() if uses == "a" else (a + b).sum()
            loss.backward()
            return loss

        before = a.item(), b.item()
        seen.clear()
        optimizer.step(closure)
        return [x != y for x, y in zip(before, seen[-1], strict=True)]  # which are perturbed in the last pass

    step("b")
    assert step("a") == [True, True]
    assert step("b") == [True, False]
    assert step("b") == [True, True]
    b.requires_grad_(False)
    assert step("a") == [True, False]


def test_the_momentum_of_a_frozen_parameter_perturbs_nothing(device):
    p = problem(device)
    optimizer = build("msam", p.model)
    p.run(optimizer, 2)
    frozen = next(p.model.parameters()).requires_grad_(False)
    before, seen = frozen.clone(), []
    optimizer.step(p.closure(optimizer, before=lambda: seen.append(frozen.clone())))
    assert all(torch.equal(each, before) for each in seen)


def test_step_hooks_get_what_torch_gives_them(device):
    p = problem(device)
    base = SGD(p.model.parameters(), lr=0.1)
    seen = []
    for optimizer in (base, SAM(base, model=p.model)):
        optimizer.register_step_pre_hook(lambda o, args, kwargs: seen.append((o, args[0], callable(args[-1]))))
    closure = p.closure(optimizer)
    optimizer.step(closure)
    assert [(o, first) for o, first, _ in seen] == [(optimizer, optimizer), (base, base)]
    assert seen[0][2]


def test_a_closure_that_zeroes_frees_the_gradients_of_the_step_before(device):
    """The look for accumulated gradients must not keep a copy of the weights in memory."""
    p = problem(device)
    optimizer = SAM(SGD(p.model.parameters(), lr=0.1), model=p.model)
    p.run(optimizer, 1)
    old = [weakref.ref(q.grad) for q in p.model.parameters()]
    freed = []

    def closure():
        optimizer.zero_grad()
        freed.append(all(grad() is None for grad in old))
        loss = nn.functional.cross_entropy(p.model(p.images[0]), p.labels[0])
        loss.backward()
        return loss

    optimizer.step(closure)
    assert freed == [True, True]

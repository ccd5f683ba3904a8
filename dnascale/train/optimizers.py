"""Optimizers besides torch's AdamW, for whole parameters and for the flat pieces that DeepSpeed ZeRO cuts them into.

What an update needs of a whole parameter (a norm, sums over rows, a matrix) is summed over the ranks that hold its pieces,
so the formulas are the same everywhere. Nothing waits for the device: a gradient that is not finite (`found_inf`, set on the
device) leaves weights and state as they are by arithmetic.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """Elements [start, start + numel) of a parameter, at [offset, offset + numel) of a tensor that an optimizer updates."""

    parameter: str
    start: int
    numel: int
    offset: int = 0


@dataclass(frozen=True)
class Ranks:
    """The processes that take a step together. `sum` adds a tensor up over them, in place, and returns it."""

    rank: int
    world: int
    sum: Callable[[Tensor], Tensor]
    cut: bool  # each has pieces of parameters; else each has all of them whole


class Part(NamedTuple):
    """A piece with the flat views of its tensors, [numel] each."""

    piece: Piece
    shape: tuple[int, ...]  # of the whole parameter
    weight: Tensor
    gradient: Tensor
    state: dict[str, Tensor]


class PiecewiseOptimizer(torch.optim.Optimizer):
    """Base class. Parameter groups have `shapes`, {name: shape} of the parameters in them, beside `params`.

    Before `place` is called no tensor is updated: DeepSpeed replaces the tensors that an optimizer is built with.
    """

    #: float32 [], 1 where the gradients are not finite and the step is to change nothing.
    found_inf: Tensor | None = None

    def __init__(self, groups: Sequence[dict[str, Any]], **defaults: Any) -> None:
        super().__init__(groups, defaults)
        self._pieces: dict[Tensor, list[Piece]] = {}
        #: None where this process is alone.
        self.ranks: Ranks | None = None
        #: State of whole parameters that every rank holds: {parameter: {kind: tensor}}.
        self.shared: dict[str, dict[str, Tensor]] = defaultdict(dict)

    def place(self, pieces: Mapping[Tensor, list[Piece]], ranks: Ranks | None = None) -> None:
        """Says what the tensors to update are made of, and gives them the state of step 0."""
        self._pieces = dict(pieces)
        self.ranks = ranks
        shapes = {name: shape for group in self.param_groups for name, shape in group["shapes"].items()}
        for tensor, of_tensor in pieces.items():
            names = [piece.parameter for piece in of_tensor] or list(shapes)
            kinds = {kind for name in names for kind in self.kinds(name, shapes[name])}
            self.state[tensor] = {kind: torch.zeros_like(tensor) for kind in sorted(kinds)}
            self.state[tensor]["step"] = torch.zeros((), dtype=torch.float32, device=tensor.device)
        device = next(iter(pieces)).device
        for name, shape in shapes.items():
            self.shared[name] = {k: torch.zeros(s, device=device) for k, s in self.shared_kinds(name, shape).items()}

    @staticmethod
    def kinds(parameter: str, shape: tuple[int, ...]) -> tuple[str, ...]:
        """Names of the state that has an element for each of the parameter's."""
        return ("exp_avg", "exp_avg_sq")

    @staticmethod
    def shared_kinds(parameter: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the state that has not, and is small: every rank holds it."""
        return {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            tensors = [tensor for tensor in group["params"] if tensor.grad is not None and tensor in self._pieces]
            if not tensors:
                continue
            ok = torch.ones((), device=tensors[0].device)
            if self.found_inf is not None:
                ok = ok - self.found_inf
                for tensor in tensors:
                    tensor.grad.masked_fill_(self.found_inf.bool(), 0.0)
            for tensor in tensors:
                self.state[tensor]["step"] += ok
            parts = [part for tensor in tensors for part in self._parts(group, tensor)]
            # Of a step that is left out, as if none had been made; the bias correction divides by 0 at step 0.
            count = self.state[tensors[0]]["step"].clamp_min(1)
            self.update(group, parts, count, ok)

    def update(self, group: dict[str, Any], parts: list[Part], count: Tensor, ok: Tensor) -> None:
        """Updates the weights and state of `parts`. count: updates with this one, float32 []. ok: 1, or 0 to change nothing."""
        raise NotImplementedError

    def _parts(self, group: dict[str, Any], tensor: Tensor) -> list[Part]:
        def of(whole: Tensor, piece: Piece) -> Tensor:
            return whole.reshape(-1).narrow(0, piece.offset, piece.numel)

        assert tensor.grad is not None
        state = {kind: value for kind, value in self.state[tensor].items() if kind != "step"}
        # A rank that holds nothing but padding takes part in the sums with a piece of no elements.
        pieces = self._pieces[tensor] or [Piece(next(iter(group["shapes"])), 0, 0)]
        return [
            Part(
                piece, group["shapes"][piece.parameter], of(tensor.detach(), piece), of(tensor.grad, piece),
                {kind: of(value, piece) for kind, value in state.items()},
            )
            for piece in pieces
        ]  # fmt: skip

    def _sums(self, group: dict[str, Any], parts: list[Part], tables: list[list[Tensor]]) -> list[list[Tensor]]:
        """Sums over the pieces of each parameter on all ranks: [part][n] of any shapes -> the same."""
        if self.ranks is None or not self.ranks.cut:
            return tables
        # Every rank sums one vector with a place for each parameter of the group, also for those it has no piece of.
        places, size = {}, 0
        for name, shape in group["shapes"].items():
            places[name] = size
            size += sum(self._sum_sizes(name, shape))
        vector = torch.zeros(size, device=group["params"][0].device)
        for part, values in zip(parts, tables, strict=True):
            flat = torch.cat([value.reshape(-1) for value in values])
            vector[places[part.piece.parameter] :][: len(flat)] = flat
        vector = self.ranks.sum(vector)
        out = []
        for part, values in zip(parts, tables, strict=True):
            sizes = [value.numel() for value in values]
            flat = vector[places[part.piece.parameter] :][: sum(sizes)]
            out.append([one.reshape(v.shape) for one, v in zip(flat.split(sizes), values, strict=True)])
        return out

    def _sum_sizes(self, parameter: str, shape: tuple[int, ...]) -> list[int]:
        """Elements of each of the tensors that `_sums` is given for a parameter, at most."""
        return [1]

    def _adam(self, group: dict[str, Any], parts: list[Part], count: Tensor, ok: Tensor, clip: bool) -> None:
        """AdamW (Loshchilov and Hutter 2019). With `clip` StableAdamW (Wortsman et al. 2023, algorithm 2): the rate of each
        parameter is divided by the root mean square of gradient / sqrt(second moment), where that is above 1.
        """
        (beta1, beta2), eps = group["betas"], group["eps"]
        gradients = [part.gradient for part in parts]
        first, second = ([part.state[kind] for part in parts] for kind in ("exp_avg", "exp_avg_sq"))
        _decay(first, gradients, beta1, ok)
        _decay(second, torch._foreach_mul(gradients, gradients), beta2, ok)
        scale = torch._foreach_div(second, 1 - beta2**count)
        torch._foreach_sqrt_(scale)
        rates = torch.full((len(parts),), group["lr"], device=ok.device) * ok
        if clip:
            ratio = torch._foreach_div(gradients, torch._foreach_clamp_min(scale, eps))
            norms = torch._foreach_norm(ratio)
            sums = self._sums(group, parts, [[one] for one in torch._foreach_mul(norms, norms)])
            means = torch._foreach_div([one for (one,) in sums], [float(math.prod(part.shape)) for part in parts])
            rates = rates / torch.stack(means).sqrt().clamp_min(1)
        torch._foreach_add_(scale, eps)
        torch._foreach_mul_(scale, 1 - beta1**count)
        update = torch._foreach_div(first, scale)
        torch._foreach_add_(update, [part.weight for part in parts], alpha=group["weight_decay"])
        torch._foreach_mul_(update, list(rates.unbind()))
        torch._foreach_sub_([part.weight for part in parts], update)


def _decay(means: list[Tensor], values: Sequence[Tensor], beta: float, ok: Tensor) -> None:
    """means = beta * means + (1 - beta) * values, unless `ok` is 0."""
    torch._foreach_mul_(means, 1 - (1 - beta) * ok)
    torch._foreach_add_(means, torch._foreach_mul(values, (1 - beta) * ok))


class StableAdamW(PiecewiseOptimizer):
    """AdamW whose updates are clipped for each parameter: no norm of the whole gradient is needed to survive a bad batch."""

    def update(self, group: dict[str, Any], parts: list[Part], count: Tensor, ok: Tensor) -> None:
        self._adam(group, parts, count, ok, clip=True)


#: Of the quintic iteration that orthogonalises, from Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/).
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: Tensor, dtype: torch.dtype, steps: int = 5) -> Tensor:
    """[n, rows, columns] -> the same in `dtype`, with singular values near 1 (between about 0.7 and 1.2)."""
    a, b, c = _NEWTON_SCHULZ
    x = matrices.to(dtype)
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT


def is_hidden_matrix(parameter: str, shape: tuple[int, ...]) -> bool:
    """What Muon is for: the matrices of the layers. Embeddings, head, norms and biases are AdamW's."""
    return len(shape) == 2 and ".layers." in parameter


def _matrices_in(parameter: str) -> int:
    """Matrices that one weight holds, one above the other: query, key and value; the two halves of the gated unit."""
    return {"Wqkv": 3, "Wi": 2}.get(parameter.split(".")[-2], 1)


class Muon(PiecewiseOptimizer):
    """Momentum, orthogonalised, for the matrices of the layers; AdamW for the rest (Jordan et al. 2024).

    Updates are scaled to the root mean square that AdamW's have, 0.2 * sqrt(max(rows, columns)) (Liu et al. 2025, "Muon is
    scalable for LLM training"), so that both take the same learning rate. Query, key and value are matrices of their own. The
    iteration runs in the run's precision; the original has bf16. Cut into pieces, the momenta are summed over ranks into whole
    matrices. Each rank orthogonalises its share of the matrices, and all get all of them.
    """

    @staticmethod
    def kinds(parameter: str, shape: tuple[int, ...]) -> tuple[str, ...]:
        return ("momentum_buffer",) if is_hidden_matrix(parameter, shape) else ("exp_avg", "exp_avg_sq")

    def update(self, group: dict[str, Any], parts: list[Part], count: Tensor, ok: Tensor) -> None:
        if not group["hidden"]:
            self._adam(group, parts, count, ok, clip=False)
            return
        momentum, rate = group["momentum"], group["lr"] * ok
        gradients, buffers = [part.gradient for part in parts], [part.state["momentum_buffer"] for part in parts]
        _decay(buffers, gradients, momentum, ok)
        ahead = torch._foreach_mul(gradients, 1 - momentum)  # Nesterov's
        torch._foreach_add_(ahead, buffers, alpha=momentum)
        updates = self._orthogonalized(group, self._assemble(group, parts, ahead))
        weights = [part.weight for part in parts]
        torch._foreach_mul_(weights, 1 - rate * group["weight_decay"])
        own = [updates[p.parameter].narrow(0, p.start, p.numel).float() for p, *_ in parts]
        scales = [0.2 * max(self._matrix(part.piece.parameter, part.shape)) ** 0.5 for part in parts]
        torch._foreach_mul_(own, scales)
        torch._foreach_sub_(weights, torch._foreach_mul(own, rate))

    def _assemble(self, group: dict[str, Any], parts: list[Part], flat: Sequence[Tensor]) -> dict[str, Tensor]:
        """Whole parameters, flat, from the parts of all ranks."""
        if self.ranks is None or not self.ranks.cut:
            return {part.piece.parameter: one for part, one in zip(parts, flat, strict=True)}
        places = self._places(group, torch.float32)
        for part, one in zip(parts, flat, strict=True):
            places[part.piece.parameter].narrow(0, part.piece.start, part.piece.numel).copy_(one)
        return self._summed(places)

    def _orthogonalized(self, group: dict[str, Any], whole: dict[str, Tensor]) -> dict[str, Tensor]:
        """The matrices in parameters, flat, orthogonalised: each rank does its share."""
        names = list(whole)
        mine = names if self.ranks is None else names[self.ranks.rank :: self.ranks.world]
        # Those of one shape go through the iteration together.
        by_shape: dict[tuple[int, int], list[str]] = defaultdict(list)
        for name in mine:
            by_shape[self._matrix(name, group["shapes"][name])].append(name)
        done: dict[str, Tensor] = {}
        for shape, alike in by_shape.items():
            matrices = [whole[name].view(-1, *shape) for name in alike]
            results = orthogonalize(torch.cat(matrices), group["dtype"])
            done |= {
                name: one.reshape(-1)
                for name, one in zip(alike, results.split([len(m) for m in matrices]), strict=True)
            }
        if self.ranks is None:
            return done
        places = self._places(group, group["dtype"])
        for name, one in done.items():
            places[name].copy_(one)
        return self._summed(places)  # one rank has each, and the others zeros: exact

    @staticmethod
    def _matrix(parameter: str, shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns of the matrices in a parameter."""
        return shape[0] // _matrices_in(parameter), shape[1]

    @staticmethod
    def _places(group: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
        """Zeros for every parameter of the group, side by side in one tensor."""
        sizes = [math.prod(shape) for shape in group["shapes"].values()]
        everything = torch.zeros(sum(sizes), dtype=dtype, device=group["params"][0].device)
        return dict(zip(group["shapes"], everything.split(sizes), strict=True))

    def _summed(self, places: dict[str, Tensor]) -> dict[str, Tensor]:
        assert self.ranks is not None
        self.ranks.sum(next(iter(places.values()))._base)
        return places


class Adafactor(PiecewiseOptimizer):
    """The second moment of a matrix as the product of a row and a column (Shazeer and Stern 2018), with little state.

    Algorithm 4 with a decay of 1 - step^-0.8 and updates clipped to a root mean square of 1, without first moment, and with the
    learning rate of the schedule instead of one that follows from the weights.
    """

    @staticmethod
    def kinds(parameter: str, shape: tuple[int, ...]) -> tuple[str, ...]:
        return () if len(shape) == 2 else ("exp_avg_sq",)

    @staticmethod
    def shared_kinds(parameter: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        return {"exp_avg_sq_row": shape[:1], "exp_avg_sq_col": shape[1:]} if len(shape) == 2 else {}

    def _sum_sizes(self, parameter: str, shape: tuple[int, ...]) -> list[int]:
        return list(shape) if len(shape) == 2 else [1]

    def update(self, group: dict[str, Any], parts: list[Part], count: Tensor, ok: Tensor) -> None:
        stay = 1 - count**-0.8 * ok  # of the second moment
        if all(len(part.shape) == 2 for part in parts):
            updates = self._of_matrices(group, parts, stay)
        else:
            updates = []
            for part in parts:
                part.state["exp_avg_sq"].mul_(stay).add_((part.gradient**2 + 1e-30) * (1 - stay))
                updates.append(part.gradient * part.state["exp_avg_sq"].clamp_min(1e-30).rsqrt())
        squares = self._sums(group, parts, [[update.square().sum()] for update in updates])
        rate = group["lr"] * ok
        for part, update, (square,) in zip(parts, updates, squares, strict=True):
            clipped = update / (square / math.prod(part.shape)).sqrt().clamp_min(1)
            part.weight.sub_((clipped + group["weight_decay"] * part.weight) * rate)

    def _of_matrices(self, group: dict[str, Any], parts: list[Part], stay: Tensor) -> list[Tensor]:
        """The update before clipping of each part, [numel]."""
        sums = []
        for part in parts:
            first, rows = _as_rows(part.gradient**2 + 1e-30, part)
            of_rows = torch.nn.functional.pad(rows.sum(1), (first, part.shape[0] - first - len(rows)))
            sums.append([of_rows, rows.sum(0)])
        updates = []
        for part, (of_rows, of_columns) in zip(parts, self._sums(group, parts, sums), strict=True):
            row, column = self.shared[part.piece.parameter].values()
            row.mul_(stay).add_(of_rows / part.shape[1] * (1 - stay))
            column.mul_(stay).add_(of_columns / part.shape[0] * (1 - stay))
            first, gradient = _as_rows(part.gradient, part)
            by_row = (row / row.mean().clamp_min(1e-30)).clamp_min(1e-30).rsqrt().narrow(0, first, len(gradient))
            update = gradient * by_row.unsqueeze(1) * column.clamp_min(1e-30).rsqrt()
            begin = part.piece.start - first * part.shape[1]
            updates.append(update.reshape(-1).narrow(0, begin, part.piece.numel))
        return updates


def _as_rows(values: Tensor, part: Part) -> tuple[int, Tensor]:
    """Flat values of a part of a matrix -> (first row, [rows, columns]), zeros where another rank has the rest of a row."""
    columns = part.shape[1]
    first, before = divmod(part.piece.start, columns)
    after = -(part.piece.start + part.piece.numel) % columns
    if before or after:
        values = torch.nn.functional.pad(values, (before, after))
    return first, values.view((before + part.piece.numel + after) // columns, columns)


OPTIMIZERS: dict[str, type[PiecewiseOptimizer]] = {"stable_adamw": StableAdamW, "muon": Muon, "adafactor": Adafactor}

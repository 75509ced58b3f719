"""Dictionaries of one recipe trained together: one batched encoder product, and the sparse kernels on all of
their latents at once.

The members' trainers stay what they are: while they are stacked, their weights, moments and counters are
views into the stack's, so that each is saved, resumed and finished on its own, and ends as it would have
alone (CPU, fp32: to the bit).
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from deltasae_ray import heartbeat
from deltasae_ray.errors import DictionaryError
from deltasae_ray.sae.architectures import SELECTING, Weights, missed_by_dead, sparse_forward
from deltasae_ray.sae.recipe import Recipe
from deltasae_ray.sae.trainer import Trainer

_MOMENTS = ("exp_avg", "exp_avg_sq")
_MOST = 16
"""Dictionaries of a stack."""
_SMALL = 2**26
"""batch · d_model · d_sae up to which a CPU trains stacked. A stack saves what a step costs beside its
arithmetic, and spills the caches. Measured on one core, milliseconds a dictionary and step alone over
stacked, stacks of 4 and 16: d_model 32, d_sae 64, batch 256 3.5, 2.6; 64, 256, 1024 1.2, 1.1; 256, 256, 512
1.3, 1.4; 256, 512, 1024 1.1, 1.2; 640, 512, 1024 .9, 1.0; and 640, 4096, 2048 .7, where alone bf16 screening
halves the product (docs/benchmarks.md)."""


def at_once(recipe: Recipe, d_model: int, device: torch.device | str, share: float = 1.0) -> int:
    """How many dictionaries of one recipe are best trained together here: 1 where stacking does not pay. An
    accelerator, which waits for its next operation while one dictionary trains, always stacks what half of
    its free memory holds.
    """
    if recipe.architecture not in SELECTING:
        return 1
    if torch.device(device).type == "cpu":
        return _MOST if recipe.batch_tokens * d_model * recipe.d_sae <= _SMALL else 1
    # Two matrices with gradient, two moments and a temporary each; pre-activations, their maxima and the dead
    # ones'.
    need = 4 * recipe.d_sae * (10 * d_model + 3 * recipe.batch_tokens)
    return max(1, min(_MOST, int(torch.cuda.mem_get_info(device)[0] * share / 2) // need))


def train_together(
    members: Sequence[Trainer], steps: int, stop: Callable[[], bool] = lambda: False
) -> list[DictionaryError | None]:
    """`steps` steps of each, or as many as are left. Members may differ in rows and seed; one that has taken
    fewer steps than another must catch up alone first.

    Args:
        stop: asked after each step; True ends the round early.

    Returns:
        Of each member, the error with which training ran off to infinity: its state is of no use, that of the
        others is unharmed.
    """
    stack = _Stack(members)
    for _ in range(min(steps, members[0].recipe.steps - members[0].steps_done)):
        stack.step()
        heartbeat.beat()
        if stop():
            break
    stack.part()
    return stack.errors


def together(a: Trainer, b: Trainer) -> bool:
    """Whether the two can be members of one stack."""
    return (
        _shape(a) == _shape(b) and a.recipe.architecture in SELECTING and a.peers.world == b.peers.world == 1
    )


def _shape(t: Trainer) -> tuple:
    return t.recipe, t.batch, t.x.shape[1], t.device


class _Stack:
    def __init__(self, members: Sequence[Trainer]) -> None:
        first = members[0]
        assert all(together(first, m) and m.steps_done == first.steps_done for m in members), (
            "these cannot be stacked"
        )
        self.members, self.recipe = list(members), first.recipe
        self.errors: list[DictionaryError | None] = [None] * len(members)
        self.weights = Weights(
            *(
                torch.stack([w.detach() for w in own]).requires_grad_(own[0].requires_grad)
                for own in self._own()
            )
        )
        self.idle = torch.stack([m.idle for m in members])
        self.sums = torch.stack([m.sums for m in members])
        self.dead_tokens = torch.tensor([[m.dead_tokens] for m in members], device=first.device)
        self.optimizer = torch.optim.Adam(
            [w for w in self.weights if w.numel() and w.requires_grad], lr=self.recipe.lr, fused=True
        )
        for own, weight in zip(self._own(), self.weights, strict=True):
            if weight.numel():
                self._adopt(own, weight)
        for m, idle, sums in zip(members, self.idle, self.sums, strict=True):
            m.idle, m.sums = idle, sums

    def _own(self) -> list[tuple[Tensor, ...]]:
        """Weight by weight, the members'."""
        return list(zip(*(m.weights for m in self.members), strict=True))

    def _adopt(self, own: Sequence[Tensor], weight: Float[Tensor, "stack ..."]) -> None:
        """Makes the members' weights and moments views of the stack's."""
        for w, shared in zip(own, weight.detach(), strict=True):
            w.grad, w.data = None, shared
        if not weight.requires_grad:
            return
        taken = self.members[0].steps_done
        states = [m.optimizer.state[w] for m, w in zip(self.members, own, strict=True)]
        kept = {
            name: torch.stack([s[name] for s in states]) if taken else torch.zeros_like(weight)
            for name in _MOMENTS
        }
        self.optimizer.state[weight] = {"step": torch.tensor(float(taken), device=weight.device), **kept}
        for i, state in enumerate(states):
            state.update({name: kept[name][i] for name in _MOMENTS})

    def part(self) -> None:
        """Gives every member its own count of Adam's steps, which it needs to go on alone."""
        for own, weight in zip(self._own(), self.weights, strict=True):
            for m, w in zip(self.members, own, strict=True):
                if weight in self.optimizer.state:
                    m.optimizer.state[w]["step"] = self.optimizer.state[weight]["step"].clone()

    def step(self) -> None:
        """One batch of every member."""
        y = torch.stack([m.next_batch() for m in self.members])
        forward = sparse_forward(y, self.weights, self.recipe.architecture, self.recipe.k)
        sums = torch.stack([_energies(forward.error), _energies(y)], dim=1).double()
        loss = (forward.missed / _positive(sums[:, 1].float())).sum()
        dead = self._count(forward.fired)
        if self.recipe.auxk and any(map(len, dead)):
            loss = loss + self.recipe.auxk * self._auxk(y, dead, forward.error).sum()
        self._update(loss)
        self.sums += sums
        for i, m in enumerate(self.members):
            try:
                m.steps_done += 1
                if self.errors[i] is None:
                    m.note(len(dead[i]))
            except DictionaryError as e:
                self.errors[i] = e

    def _count(self, fired: Int[Tensor, " entry"]) -> tuple[Int[Tensor, " dead"], ...]:
        """Resets the counters of the latents that fired; each member's that have not for too long."""
        times = torch.bincount(fired, minlength=self.idle.numel()).view_as(self.idle)
        self.idle += self.members[0].batch
        self.idle[times > 0] = 0
        member, latent = (self.idle >= self.dead_tokens).nonzero(as_tuple=True)
        return latent.split(torch.bincount(member, minlength=len(self.members)).tolist())

    def _auxk(
        self,
        y: Float[Tensor, "stack batch d_model"],
        dead: Sequence[Int[Tensor, " dead"]],
        left: Float[Tensor, "stack batch d_model"],
    ) -> Float[Tensor, " stack"]:
        """`Trainer`'s, of every member that has dead latents."""
        # Taken apart once for all: their gradients then come together once too, and after those of the
        # members' own passes, as alone.
        own = (Weights(*parts) for parts in zip(*(w.unbind() for w in self.weights), strict=True))
        missed = [
            missed_by_dead(rows, w, latents, missing) if len(latents) else missing.new_zeros(())
            for rows, w, latents, missing in zip(y, own, dead, left, strict=True)
        ]
        return torch.stack(missed) / _positive(_energies(left))

    def _update(self, loss: Float[Tensor, ""]) -> None:
        self.optimizer.param_groups[0]["lr"] = self.recipe.rate(self.members[0].steps_done)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if not self.weights.decoder.requires_grad:
            return
        with torch.no_grad():
            self.weights.decoder.div_(torch.linalg.vector_norm(self.weights.decoder, dim=-1, keepdim=True))


def _energies(rows: Float[Tensor, "stack batch d_model"]) -> Float[Tensor, " stack"]:
    """Σ of squares of each member, one by one: a sum over two of three dimensions rounds as the number of
    threads will have it."""
    return torch.stack([member.square().sum() for member in rows])


def _positive(energy: Float[Tensor, " stack"]) -> Float[Tensor, " stack"]:
    return energy.clamp_min(torch.finfo(torch.float32).tiny)

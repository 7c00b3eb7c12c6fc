"""Gradients live in few directions: of classifiers of blobs, of an actor-critic, of a mixture's network."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import workbench as wb
from workbench.landscapes.lanczos import top_eigenpairs
from workbench.landscapes.landscape import landscape, of_training
from workbench.landscapes.operators import Operator, dense, hessian
from workbench.landscapes.subspaces import layer_alignment, overlap, random_share, share

pytestmark = pytest.mark.usefixtures("one_thread")


def blobs(seed, classes, dim, count, apart):
    """Blobs around orthogonal means."""
    key, like = wb.Key(seed).stream("blobs"), torch.empty(0)
    means = torch.linalg.qr(key.stream("means").normal((dim, classes), like=like)).Q.T * apart
    y = torch.arange(count) % classes
    return means[y] + key.stream("x").normal((count, dim), like=like), y


def ring(seed, count=600, apart=2.0):
    """Three blobs around 0 in the plane."""
    angles, y = torch.arange(3) * (2 * math.pi / 3), torch.arange(count) % 3
    means = torch.stack([angles.cos(), angles.sin()], 1) * apart
    return means[y] + wb.Key(seed).stream("ring").normal((count, 2), like=means), y


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_of_three_classes_lies_in_three_directions_that_persist(seed):
    """Gur-Ari et al. 2018, arXiv:1812.04754: gradients of minibatches, on Gaussian blobs in the plane.

    In ten dimensions a third to a half of them lies there; the mean gradient does so only for rates that keep it there.
    """
    x, y = ring(seed)
    routine = wb.training(wb.make("mlp", width=20), "cross_entropy", (x, y, x[:10], y[:10]), "sgd")
    session = wb.Session(routine, seed=seed, hyper={"lr": 0.1, "batch_size": 50}).step(100)
    shares, spans = [], []
    for _ in range(2):
        scene = of_training(routine, session.state)
        found, order = top_eigenpairs(hessian(scene), 3), wb.Key(seed).stream("batches").permutation(len(x))
        steps = [scene.on(rows).gradient(scene.start[None])[1][0] for rows in order.split(50)]
        shares.append(sum(float(share(step, found.vectors)) for step in steps) / len(steps))
        spans.append(found.vectors)
        session.step(100)
    chance = random_share(3, scene.dim)
    control = torch.linalg.qr(wb.Key(seed).normal((scene.dim, 3), like=steps[0])).Q.T
    assert min(shares) > 0.5
    assert float(share(steps[0], control)) < 0.1
    assert float(overlap(*spans)) > 10 * chance


STATES, ACTIONS, EPISODES, LENGTH, DISCOUNT = 8, 2, 32, 16, 0.9


class Chain:
    """States in a row; a step to the right from the last one pays 1 and stays there. The actor-critic sees one-hot."""

    def __init__(self, seed):
        self.key = wb.Key(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = nn.Sequential(nn.Linear(STATES, 64), nn.Tanh(), nn.Linear(64, ACTIONS + 1))
        self.shapes = [tuple(p.shape) for p in self.net.parameters()]
        self.names = [name for name, _ in self.net.named_parameters()]
        self.x = nn.utils.parameters_to_vector(self.net.parameters()).detach()

    def answers(self, x, states):
        parts = x.split([math.prod(shape) for shape in self.shapes])
        named = {n: p.view(shape) for n, p, shape in zip(self.names, parts, self.shapes, strict=True)}
        out = torch.func.functional_call(self.net, named, (F.one_hot(states, STATES).float(),))
        return out[..., :ACTIONS].log_softmax(-1), out[..., ACTIONS]

    def play(self, k):
        """Episodes under the policy: (states, actions, returns)."""
        draws = self.key.at(k).uniform((LENGTH, EPISODES), like=self.x)
        at = torch.zeros(EPISODES, dtype=torch.long)
        states, actions, rewards = [], [], []
        for row in draws:
            logs, _ = self.answers(self.x, at)
            right = (row < logs[:, 1].exp()).long()
            rewards.append(((at == STATES - 1) & (right == 1)).float())
            states.append(at)
            actions.append(right)
            at = (at + 2 * right - 1).clamp(0, STATES - 1)
        returns, later = [], torch.zeros(EPISODES)
        for reward in reversed(rewards):
            later = reward + DISCOUNT * later
            returns.insert(0, later)
        return torch.cat(states), torch.cat(actions), torch.cat(returns)

    def loss(self, k):
        """The actor's loss and half the critic's, of the episodes of update k, as a function of the parameters."""
        states, actions, returns = self.play(k)
        with torch.no_grad():
            advantage = returns - self.answers(self.x, states)[1]

        def f(x):
            logs, values = self.answers(x, states)
            chosen = logs.gather(1, actions[:, None])[:, 0]
            return -(chosen * advantage).mean() + 0.5 * (values - returns).square().mean()

        return f

    def learn(self, updates, lr=0.1, first=0):
        for k in range(first, first + updates):
            self.x = self.x - lr * torch.func.grad(self.loss(k))(self.x)


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_of_an_actor_critic_lies_in_few_directions_that_persist(seed):
    """Schneider et al. 2024, arXiv:2401.06604: shares and overlaps far above those of random subspaces."""
    chain, k = Chain(seed), 10
    chain.learn(100)
    shares, spans = [], []
    for first in (100, 200):
        scene = landscape(chain.loss(first), start=chain.x)
        gradient = scene.gradient(scene.start[None])[1][0]
        found = top_eigenpairs(hessian(scene), k)
        if first == 100:
            exact = torch.linalg.eigvalsh(dense(hessian(scene)).double())
            torch.testing.assert_close(found.values.double(), exact.flip(0)[:k], rtol=1e-3, atol=1e-4)
        shares.append(float(share(gradient, found.vectors)))
        spans.append(found.vectors)
        chain.learn(100, first=first)
    chance = random_share(k, scene.dim)
    assert min(shares) > 10 * chance
    assert float(overlap(*spans)) > 5 * chance


@pytest.mark.parametrize("seed", range(3))
def test_the_first_layer_of_a_network_aligns_with_the_outlier_space_of_a_mixture(seed):
    """Ben Arous et al. 2023, arXiv:2310.03010, two layers: each unit's weights turn into the top space of its block."""
    classes, dim, width = 4, 100, 8
    x, y = blobs(seed, classes, dim, 1000, apart=10.0)
    x = x / 5
    routine = wb.training(
        wb.make("mlp", width=width, activation="tanh"), "cross_entropy", (x, y, x[:10], y[:10]), "sgd"
    )
    session, found = wb.Session(routine, seed=seed, hyper={"lr": 0.1, "batch_size": 20}), []
    for steps in (0, 1000):
        session.step(steps)
        whole, aligned = hessian(of_training(routine, session.state)), []
        for unit in range(width):
            cut = slice(unit * dim, (unit + 1) * dim)

            def product(v, cut=cut, whole=whole):
                return whole(F.pad(v, (cut.start, whole.dim - cut.stop)))[:, cut]

            top = top_eigenpairs(Operator(product, whole.like[cut], "a unit"), classes, largest="magnitude")
            weights = session.state.x[0][cut]
            aligned.append(float(layer_alignment(weights, top.vectors, [dim])[0]))
        found.append(sum(aligned) / width)
    assert found[0] < 0.5  # by chance sqrt(classes / dim) = 0.2; the Hessian knows of the weights from the start
    assert found[1] > 0.8

"""A coupling learned with the flow: an encoder says where each data sample comes from, so that lines cross less."""

from typing import Any

from workbench.flows.choices import per_time
from workbench.flows.nets import Nets
from workbench.flows.objectives import FlowObjective
from workbench.flows.training import FlowNet, NetField
from workbench.routine import Hyper


class LearnedCoupling(FlowObjective):
    """E |v(x_t, t) - dx_t/dt|² + kl_weight E KL(q(x0 | x1) || N(0, I)) / dim, x0 ~ q = N(μ(x1), diag s²(x1)).

    Two nets, trained at once, in one vector of parameters: the velocity, and an encoder that gives μ and log s² of each
    data sample. x0 = μ + s ε, with ε the source's own sample: meant for a unit normal and independent pairs. The lower
    the first part, the less paths cross and the straighter they are; the second holds the law of x0 near the normal,
    from which samples start. With kl_weight to infinity q is the source, and this is flow matching with independent
    pairs; where it is small, samples start where no path has been.
    Source: Lee, Kim & Ye 2023, arXiv:2301.12003; checked with train_reverse_2d_joint.py of its code, which has the KL
    divided by the dimension as well (its weight 10 there, for data on a larger scale).
    """

    name = "learned-coupling"
    title = "Learned coupling (minimal curvature)"
    source = "Lee, Kim & Ye 2023, arXiv:2301.12003"
    ledger = "minimizing-trajectory-curvature-of-ode-based"
    evidence = "tests/flows/test_learned.py::test_the_loss_is_that_of_its_source[linear-path]"
    kl_weight = Hyper(3.0, 0.0, 1e6, soft=(0.0, 20.0), doc="What it costs that the coupled source is not the normal.")

    def network(self, model, dim, classes):
        return Nets(model, dim, classes, {"velocity": (0, dim), "encoder": (0, 2 * dim)})

    def field(self, net: Any, params, path, source, target):
        plain = FlowNet(net.unbound, net.dim, net.classes)
        return NetField(plain, params[:, net.model.places["velocity"]], "velocity", path, source, target)

    def loss(self, net, old, batch, setting):
        mean, log_square = net(batch.x1, batch.t.new_ones(()), part="encoder").chunk(2, -1)
        x0 = mean + (log_square / 2).exp() * batch.x0
        pairs = x0, batch.x1, batch.t, batch.z
        missed = setting.size(net(setting.path.at(*pairs), batch.t) - setting.path.target("velocity", *pairs))
        apart = (mean.square() + log_square.exp() - log_square - 1).mean(-1) / 2
        return (setting.weight(batch.t) * missed + per_time(setting.hyper["kl_weight"]) * apart).mean(-1)

"""Asynchronous successive halving for several objectives."""

from __future__ import annotations

from functools import partial

from autotune.decide.policies.asha import ASHA
from autotune.decide.policies.front_rung import FrontRung, epsilon_net, hypervolume_contribution
from autotune.decide.policies.rungs import Ladder, reduction_space, rung_units
from autotune.plugins.search import SearchContext
from autotune.space import Categorical, Space

_WITHIN = {"epsilon_net": epsilon_net, "hypervolume": hypervolume_contribution}


class MOASHA(ASHA):
    """ASHA that ranks a rung by non-dominated sorting over all objectives of kind curve and static:
    front by front, and within a front so that what goes on covers it evenly (``epsilon_net``, which
    begins with the best in the primary objective), or by what each adds to the hypervolume
    (``hypervolume``). The best 1/`reduction` of that ranking may go on.

    A static objective has the value measured once; where it is missing it counts as the worst.
    Those of kind evaluation are left to the closing phase. With one objective this is ``asha``.

    A step looks at the fronts of those that may go on, no more. Contributions to the hypervolume
    of three or more objectives cost milliseconds a front.
    """

    name = "mo_asha"
    summary = "asha for several objectives: non-dominated sorting at each rung"
    reference = (
        "Schmucker et al. 2021, Multi-objective Asynchronous Successive Halving, 2106.12639; "
        "epsilon-net as in Salinas et al. 2021, 2106.05680"
    )

    @classmethod
    def space(cls) -> Space:
        """The factor between rungs, and how trials of one front are ranked."""
        return Space(
            {
                **reduction_space().parameters,
                "within_front": Categorical(tuple(_WITHIN), default="epsilon_net"),
            }
        )

    def initial(self, context: SearchContext) -> Ladder:
        """No rung holds anything."""
        reduction = int(self.configuration["reduction"])
        primary = context.objective
        others = [o for o in context.objectives if o.kind != "evaluation" and o != primary]
        order = _WITHIN[self.configuration["within_front"]]
        return Ladder(
            rung_units(context.horizon, reduction),
            reduction,
            [primary, *others],
            partial(FrontRung, order=order),
        )

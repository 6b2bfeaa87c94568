"""Success-rate control: the share of a demonstration in the prompt follows each example's success.

AdaBack (arXiv 2506.18110), AdaPrefix (arXiv 2607.07674) and SEELE (arXiv 2509.06923) are one
controller with other laws; this one's default is an integrator.
"""

from __future__ import annotations

from prefix_rft.core.control import Control, Law
from prefix_rft.core.fixed import Fixed
from prefix_rft.core.hint import MASKS, TEMPLATE, Hint
from prefix_rft.core.laws import Bisection, Integral, Ladder, Logistic
from prefix_rft.core.method import Method
from prefix_rft.core.parts import About, Normaliser
from prefix_rft.core.store import Store
from prefix_rft.core.stream import SAMPLED, Stream, regularisers
from prefix_rft.support.errors import UserError, choose
from prefix_rft.support.imports import load_function

LAWS = ("integral", "bisection", "logistic", "ladder", "fixed")


def control(
    *,
    law: str = "integral",
    target: float = 0.5,
    gain: float = 0.2,
    jump: bool = False,
    first: float = 0.9,
    plain: float = 0.1,
    top: float = 0.97,
    withdraw: float = 0.8,
    own: bool = False,
    floor: float = 0.0,
    where: str = "answer",
    mask: str | None = None,
    template: str | None = None,
    beta: float = 0.0,
    entropy_coef: float = 0.0,
) -> Method:
    """Dr. GRPO from a prefix, as context, that is held where half of a group's rows are solved.

    Args:
        law: how the share moves: ``integral``, ``bisection``, ``logistic`` or ``ladder``; or
            ``fixed``.
        target: the success rate to hold; ``ladder`` and ``fixed`` have none.
        gain: how much the integrator moves with the distance from the target.
        jump: where all rows of a group are solved the integrator halves the share.
        first: the share at the first visits, with ``fixed`` at all; ``bisection`` draws it from
            [0, 1].
        plain: probability of a group without prefix.
        top: the largest share.
        withdraw: share of the run after which ``top`` falls in a line, to 0 at the end.
        own: where the policy has solved an example from its prompt, that rollout stands in the
            demonstration's place.
        floor: the integrator's smallest share: below 0 an example that is too easy starts from so
            much of an own rollout that went wrong.
        where: the share stands in the ``answer``, as its beginning, or in the ``prompt``, as a hint
            behind which the policy answers anew.
        mask: what is masked in a hint: ``numbers``, fenced ``code``, or what ``module:function``
            makes of its text; None masks nothing.
        template: how a hint is written, a text with ``{prompt}`` and ``{hint}``.
        beta: KL coefficient.
        entropy_coef: entropy bonus.
    """
    choose("law", law, LAWS)
    if law != "integral" and (gain != 0.2 or jump or floor):
        raise UserError(
            f"gain, jump and floor have no effect with law '{law}': they are the integrator's"
        )
    if law in ("ladder", "fixed") and target != 0.5:
        raise UserError(f"target has no effect with law '{law}', which aims at no success rate")
    if law == "bisection" and first != 0.9:
        raise UserError("first has no effect with law 'bisection', which draws its first share")
    choose("where", where, ("answer", "prompt"))
    if where == "answer" and (mask is not None or template is not None):
        raise UserError("mask and template have no effect with where 'answer': set where: prompt")
    hint = None
    if where == "prompt":
        masked = None if mask is None else MASKS.get(mask) or load_function(mask, what="mask")
        hint = Hint(TEMPLATE if template is None else template, masked)
    store = Store(successes=int(own), failures=int(floor < 0)) if own or floor < 0 else None
    laws: dict[str, Law] = {
        "integral": Integral(gain, target, first, jump=jump, floor=floor),
        "bisection": Bisection(target),
        "logistic": Logistic(target, first),
        "ladder": Ladder(first),
        "fixed": Fixed(first),
    }
    return Method(
        name="control",
        streams=(
            Stream("policy", SAMPLED, "clip", "group"),
            *regularisers(beta, entropy_coef, SAMPLED),
        ),
        rows=Control(
            laws[law],
            plain=plain,
            top=top,
            withdraw=withdraw,
            own=own,
            store=store,
            hint=hint,
        ),
        baseline="mean",
        normaliser=Normaliser("sum_over_const"),
        about=About(
            summary="Dr. GRPO from a prefix (context) that holds each example half solved",
            source="ours; the target after SEELE, arXiv 2509.06923, eq. 5",
        ),
    )

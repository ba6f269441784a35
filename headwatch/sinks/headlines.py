"""Which of the logged names get a panel of their own in W&B: those that change what a person does next.

Everything else is logged too, and hidden from automatic panels: with all of them, a run of two families has over 120.
"""

# Of each family, by the evidence rule. Next step if it moves:
HEADLINES = (
    "active",  # 0: nothing to watch on this family
    "newly_active",  # look at the heads that emerged
    "dropped",  # what the base did is lost: lower the learning rate, mix in older data
    "pruned",  # emerged heads do not last: probe more often
    "events",  # open the report at this step
    "accuracy",  # falls while the reward rises: inspect samples
    "metric_gap",  # near zero: choose another family
    "kl_from_base",  # drifts: strengthen the KL term
    "split_half_agreement",  # low: more pairs
)
FIGURES = ("cohorts", "lives", "effect")
OF_THE_RUN = ("alerts", "seconds")


def is_headline(name: str) -> bool:
    """Whether a logged name (without prefix) gets a panel.

    >>> [is_headline(name) for name in ("carry/active", "carry/circuit/active", "carry/cohort/6", "alerts")]
    [True, False, False, True]
    """
    family, _, last = name.rpartition("/")
    if not family:
        return last in OF_THE_RUN
    return last in HEADLINES + FIGURES and not family.endswith("/circuit")

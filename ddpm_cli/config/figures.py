"""What ddpm-eval and a run that measures itself can say: the metrics, and the figures of each."""

# The figures of each metric that a run may measure as it goes; the ends of an interval are NAME_low and NAME_high.
FIGURES = {
    "fid": ("fid",),
    "kid": ("kid",),
    "inception_score": ("inception_score",),
    "precision_recall": ("precision", "recall"),
    "accuracy": ("accuracy",),
    "nll": ("nll_bound", "nll_ode"),
}
HIGHER_IS_BETTER = {"inception_score", "precision", "recall", "accuracy"}
V_ERRORS = ("v_error_train", "v_error_heldout")
METRICS = (*FIGURES, "memorisation")  # of ddpm-eval

"""What the columns of the table mean, for somebody who has not read the documentation."""

from __future__ import annotations

GLOSSARY = {
    "variable": "The gene.",
    "contrast": "What is compared: the test condition against the reference.",
    "log_fc": "Log2 fold change of the mean expression, zeros included: 1 is twice as much in the test condition.",
    "log_fc_low": "Lower end of its 95 % credible interval.",
    "log_fc_high": "Upper end of its 95 % credible interval.",
    "log_fc_sd": "Its posterior standard deviation: how uncertain it is.",
    "log_fc_detection": "The part of log_fc that comes from the gene being seen in more or fewer cells.",
    "log_fc_abundance": "The part that comes from there being more or less of it in the cells where it is seen. "
    "The two parts add up to log_fc.",
    "log_fc_bias": "What log_fc is probably too high by, because the model gives both conditions one spread of log x: "
    "log_fc minus this is the mended value. 0 where the cells do not show that spreads differ.",
    "prob_up": "Probability that the mean is higher in the test condition.",
    "lfsr": "Local false sign rate: probability that the direction of the change is wrong.",
    "prob_de": "Probability that the change is larger than delta, either way.",
    "expected_fdr": "Expected share of false calls if this gene and all surer ones are called.",
    "is_de": "Whether the gene is called: expected_fdr is at most the chosen rate.",
    "detection_test": "Share of the cells of the test condition in which the gene is seen.",
    "detection_ref": "The same for the reference.",
    "mean_test": "Observed mean in the test condition, zeros included, on the linear scale.",
    "mean_ref": "The same for the reference.",
    "n_test": "Cells in the test condition.",
    "n_ref": "Cells in the reference.",
    "status": "ok; all_zero: never seen in these cells; all_positive: seen in each of them; too_few_positive: seen in "
    "fewer than three, so that little can be said.",
    "predictive_check": "ok, or what cells drawn anew from the fit do not reproduce in one of the conditions: "
    "zero_fraction, mean, or sd_log (the spread of the logarithm of positive values). One gene in a hundred fails each "
    "by chance. no_cells: no cell is in one of the conditions.",
}

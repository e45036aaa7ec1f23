"""Identifiers that the code no longer uses, each with its replacement, so that one word means one thing.

The table leaves out words that libraries or everyday code use with another meaning, as it applies to all identifiers.
"""

SEARCH = {
    "Reach": "SearchWidth",
    "additions": "n_open_candidates",
    "removals": "n_close_candidates",
    "crossed": "n_pair_candidates",
    "LEAN": "FAST",
    "NARROW": "DEFAULT",
    "WIDEST": "THOROUGH",
    "MANY": "LARGE_GRAPH_NODES",
    "STRIDE": "RESIZE_DIVISOR",
    "SHORTEST": "SHORTLIST_MIN",
    "PROMISING": "MAX_KL_RATIO",
    "FEW": "EXHAUSTIVE_MAX_NODES",
    "everyone": "all_groups",
    "worth": "improvable",
    "_take": "replace_if_better",
    "_toggled": "single_flips",
    "_each": "flip_each",
    "_exchange": "guided_swap",
    "_exchanged": "best_swap",
    "_cross": "pair_swap",
    "_raced": "screened_best",
    "_order": "visit_order",
    "Watch": "StepTracker or PerTextRecorder",
    "unwatched": "all_steps",
}
SCORER = {
    "Judge": "MaskScorer",
    "judge": "scorer",
    "Piece": "ScoredBatch",
    "slot": "group_index",
    "glimpse": "subsample",
    "_hold": "_set_batches",
}
LEARNER = {
    "lay_out": "plan_blocks",
    "_take_up": "_prepare_block",
    "_finish": "_discretize_block",
    "_start_over": "_reset",
    "_settle_ablation": "_fit_ablation",
    "_hold_constants": "_detach_ablation",
    "wanted": "target",
    "asked_sizes": "requested_sizes",
    "whose": "mask_id_per_position, or the owner's name",
    "drawn": "sampled, or figures",
}
BUDGET = {
    "settle": "adjust_log_odds",
    "price": "penalty",
    "stiffness": "penalty_scale",
    "rate_at": "lr_factor_at",
    "PULL": "PENALTY_WEIGHT",
    "CLIMB": "MULTIPLIER_LR",
}
LEARNED_ABLATION = {
    "Constants": "LearnedConstants",
    "_Fixed": "BufferList",
}
STORING = {
    "Cut": "DiscretizedMasks",
    "polished_again": "repolish",
    "going_on": "resume_polish",
    "Bar": "ProgressBar",
    "step_that_fits": "fit_to_memory",
    "write_whole": "atomic_write",
    "ASIDE": "TEMP_PATTERN",
    "aside": "temp",
}
METRICS = {
    "Head": "Unembed",
    "sharpness": "inverse_temperature",
    "EFFICIENT": "CHUNK_LOGITS",
    "Beside": "DistributionPair",
    "rarity": "unigram_surprisal",
    "Seen": "PerTextResults",
    "told": "format_report, or what it is",
    "_known": "nan_to_none",
    "_spread": "mean_std, or what it spreads",
}
MODELS = {
    "surgery": "forward_override",
    "Passage": "ModuleCall",
    "apart": "differs",
    "refusal": "unsupported_model",
    "_mixes": "has_weight_matrix",
    "Change": "ActivationEdit",
    "_as_one": "attention_gate",
    "sound_layout": "verified_layout",
    "Observed": "ActivationStats",
    "filed": "to_tensors",
    "of_file": "from_tensors",
}
DATA = {
    "Asked": "RequestedColumns",
    "place": "index, or location",
    "places": "indices, or locations",
    "Part": "SplitName",
    "Texts": "SplitDataset",
    "with_others": "add_resample_texts",
    "remarks": "notices",
}
STUDY = {
    "Bank": "MaskMeasurements",
    "Thought": "TopTokens",
    "leaving": "unigram_crossover",
    "Drawn": "StudyFigure",
}
COMMANDS = {
    "attempt": "safely",
    "TrackAgain": "RelogCallback",
    "UNSURE": "FLUSH_GRACE",
    "_whereabouts": "describe_location",
    "UNTOUCHED": "UNSUPPORTED_TRAINER_FLAGS",
    "explained": "as_user_errors",
    "_kept": "locked_output",
    "_of_the_masks": "mask_config",
    "room": "section, or step_shape",
    "doors": "entry points",
}
CONSTANTS = dict.fromkeys(
    ("LEAST", "MOST", "KINDS", "LARGEST", "LONGEST", "LEARNED", "START", "RESULTS", "AT_ONCE", "STYLE", "OURS"),
    "a name that says of what, like MIN_SEQUENCE_TOKENS",
)
RETIRED = {
    **SEARCH, **SCORER, **LEARNER, **BUDGET, **LEARNED_ABLATION, **STORING, **METRICS, **MODELS, **DATA, **STUDY,
    **COMMANDS, **CONSTANTS,
}  # fmt: skip

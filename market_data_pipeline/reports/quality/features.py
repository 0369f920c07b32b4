"""What must hold of stored features, and how bad it is when it does not.

Names, warm-up and labels come from `domain.feature_definitions`; nothing is computed again here. Add here: a rule about
features. Keep out: bars (bar_rules).
"""

# ruff: noqa: S608 - what is put into the statements are constants of this package

from __future__ import annotations

from typing import Final

from market_data_pipeline.domain.features.definitions import FEATURES
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.reports.quality.bars import UNIQUE_KEYS
from market_data_pipeline.reports.quality.rules import Rule, Severity, finite

# A return of a price above 0 is above -1, and so is its logarithm above minus infinity.
_BOUNDS: Final = {
    "log_return": finite("b.log_return"),
    **{name: finite(f"b.{name}", above="-1") for name in ("return_1h", "return_1d")},
    **{
        name: finite(f"b.{name}", at_least="0")
        for name in ("volatility_20", "volatility_50", "atr", "rolling_volume_20", "volume_ratio")
    },
}
_LABELS: Final = {
    feature.name: f"b.{feature.name} in ({', '.join(repr(label) for label in feature.labels)})"
    for feature in FEATURES
    if feature.labels
}
_STRUCTURE: Final = "case when b.hh and b.hl then 'bullish' when b.lh and b.ll then 'bearish' else 'range' end"

# Bars of one session reach back to the session before, so the first session has no `return_1d`; day bars have their
# warm-up in bars. Volume may be 0 in all of a window, and then it has no ratio.
_WARMED: Final = {feature.name: feature.warm_up for feature in FEATURES if feature.warm_up is not None}
_EMPTY: Final = " or ".join(
    f"(b.ts >= w.after[{after + 1}] and b.{name} is null"
    + (" and b.rolling_volume_20 <> 0)" if name == "volume_ratio" else ")")
    for name, after in _WARMED.items()
)
_LONGEST: Final = max(_WARMED.values())

FEATURE_RULES: Final = (
    UNIQUE_KEYS,
    Rule(
        name="every_bar_has_features",
        holds="Every bar has its row of features, and every row of features its bar.",
        broken="are a bar without features or features without a bar",
        severity=Severity.ERROR,
        why="both are written by one commit, so rows were lost.",
        query="""
            select coalesce(x.symbol, f.symbol) as symbol, coalesce(x.timeframe, f.timeframe) as timeframe,
                coalesce(x.ts, f.ts) as ts, case when f.ts is null then 'features' else 'bar' end as missing
            from (select k.symbol, k.timeframe, k.ts from market_data.bars as k join t on t.symbol = k.symbol) as x
            full join (select b.symbol, b.timeframe, b.ts from b) as f
            on f.symbol = x.symbol and f.timeframe = x.timeframe and f.ts = x.ts
            where x.ts is null or f.ts is null""",
    ),
    Rule(
        name="features_are_filled_after_warm_up",
        holds="From the bar on at which its window is full, no feature is empty.",
        broken="lack a feature whose window is full",
        severity=Severity.ERROR,
        why="a model that drops incomplete rows loses these silently.",
        query=f"""
            select b.symbol, b.timeframe, b.ts, {", ".join(f"b.{name}" for name in _WARMED)}
            from b join (
                select st.symbol, st.timeframe, array(
                    select k.ts from market_data.bars as k
                    where k.symbol = st.symbol and k.timeframe = st.timeframe order by k.ts limit {_LONGEST + 1}
                ) as after
                from market_data.series_state as st join t on t.symbol = st.symbol
            ) as w on w.symbol = b.symbol and w.timeframe = b.timeframe
            where {_EMPTY} or (b.timeframe = '{Timeframe.D1}' and b.ts >= w.after[2] and b.return_1d is null)
            or b.ts >= w.after[1] + interval '25 hours' and b.return_1d is null""",
    ),
    Rule(
        name="values_are_bounded",
        holds="Returns are above -1; volatility, range, volume and ratio are 0 or more; nothing is infinite or NaN.",
        broken="have a value outside of its bounds",
        severity=Severity.ERROR,
        why="no price above 0 gives such a value, and one of them spoils every mean that it enters.",
        query=f"""
            select b.symbol, b.timeframe, b.ts, {", ".join(f"b.{name}" for name in _BOUNDS)}
            from b where not ({" and ".join(f"coalesce({bound}, true)" for bound in _BOUNDS.values())})""",
    ),
    Rule(
        name="labels_are_known",
        holds="Each label is one of its feature's, and the structure follows from the highs and lows beside it.",
        broken="have a label that is none of its feature's or contradicts the flags beside it",
        severity=Severity.ERROR,
        why="labels are written by this code alone, from the same values.",
        query=f"""
            select b.symbol, b.timeframe, b.ts, {", ".join(f"b.{name}" for name in _LABELS)}, b.hh, b.hl, b.lh, b.ll
            from b where not ({" and ".join(f"coalesce({known}, true)" for known in _LABELS.values())})
            or b.hh and b.lh or b.hl and b.ll or b.structure_label <> {_STRUCTURE}""",
    ),
    Rule(
        name="features_follow_their_bars",
        holds="No row of features is older than the bar that it was computed of.",
        broken="were computed before their bar was last corrected",
        severity=Severity.ERROR,
        why="a correction and its features are one commit, so these still show the old prices.",
        query="""
            select b.symbol, b.timeframe, b.ts, b.features_computed_at, x.ingested_at as bar_ingested_at
            from b join market_data.bars as x on x.symbol = b.symbol and x.timeframe = b.timeframe and x.ts = b.ts
            where b.features_computed_at < x.ingested_at""",
    ),
)

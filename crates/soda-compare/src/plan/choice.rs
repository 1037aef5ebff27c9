//! The rule that chooses between the candidate settings of an arm.
//!
//! Likeness alone chooses high rates, which give the prompt away. A rule may ask for a point on the front:
//! the most likeness among the candidates that keep the prompt and drift little.

use serde::Deserialize;

use crate::results::RunResult;

/// What a chosen candidate has to keep. The default keeps nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChoiceConfig {
    /// The least mean similarity to the prompts, by CLIP.
    pub clip_t_at_least: Option<f64>,
    /// The largest mean drift of unrelated prompts, by CLIP. It needs `samples.unrelated`.
    pub drift_at_most: Option<f64>,
}

impl ChoiceConfig {
    /// The order of the candidates with these results, the best first. Among equal candidates the first is
    /// the better one.
    ///
    /// Candidates that keep what is asked are before the others, and have the order of their mean
    /// [selection score](RunResult::selection_score). The others have the order of what they lack. A
    /// candidate whose score is not finite is left out.
    pub(crate) fn order(&self, candidates: &[Vec<&RunResult>]) -> Vec<usize> {
        let ranked = candidates.iter().enumerate().filter_map(|(index, runs)| {
            let score = mean(runs, |run| run.selection_score())?;
            Some((self.lack(runs)?, score, index))
        });
        let mut ranked: Vec<_> = ranked.collect();
        ranked.sort_by(|(lack_a, score_a, _), (lack_b, score_b, _)| {
            lack_a.total_cmp(lack_b).then(score_b.total_cmp(score_a))
        });
        ranked.into_iter().map(|(_, _, index)| index).collect()
    }

    /// How far the mean scores of a candidate are from what is asked: 0 if it keeps all of it.
    fn lack(&self, runs: &[&RunResult]) -> Option<f64> {
        let prompt = match self.clip_t_at_least {
            Some(least) => least - mean(runs, |run| Some(f64::from(run.metrics.after.clip_t)))?,
            None => 0.0,
        };
        let drift = match self.drift_at_most {
            Some(most) => mean(runs, |run| run.metrics.after.drift.map(f64::from))? - most,
            None => 0.0,
        };
        Some(prompt.max(0.0) + drift.max(0.0))
    }
}

/// The mean of finite values of all runs; `None` if a run has none.
fn mean(runs: &[&RunResult], value: impl Fn(&RunResult) -> Option<f64>) -> Option<f64> {
    let values: Option<Vec<f64>> = runs.iter().map(|run| value(run)).collect();
    let values = values?;
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    mean.is_finite().then_some(mean)
}

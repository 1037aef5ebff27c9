//! What a comparison writes and prints at its end.

use std::path::{Path, PathBuf};

use anyhow::Result;
use soda_compare::{
    ComparisonPlan, Evaluation, EvaluationResult, ReportInput, ResultsFile, Run, RunResult,
    peft_jsonl, report, score_table, strength_table,
};
use soda_pipeline::counted;
use soda_train::write_file;

use crate::progress::print_result;

/// Runs with their results.
pub(crate) struct Done<'a> {
    pub(crate) plan: &'a ComparisonPlan,
    pub(crate) runs: &'a [Run],
    pub(crate) results: &'a ResultsFile<RunResult>,
}

impl Done<'_> {
    /// Writes the report into `out`, and prints the scores.
    pub(crate) fn write_report(
        &self,
        evaluations: &[Evaluation],
        evaluation_results: &ResultsFile<EvaluationResult>,
        folders: &[PathBuf],
        out: &Path,
    ) -> Result<()> {
        let &Self { plan, runs, results } = self;
        let page =
            report(&ReportInput { plan, runs, results, evaluations, evaluation_results, folders })?;
        write_file(&out.join("report.html"), page.as_bytes())?;
        write_file(&out.join("peft.jsonl"), peft_jsonl(runs, results).as_bytes())?;
        print_scores(runs, results);
        print_strengths(evaluations, evaluation_results);
        print_result(&format!("see {}", out.join("report.html").display()));
        Ok(())
    }
}

fn print_scores(runs: &[Run], results: &ResultsFile<RunResult>) {
    for row in score_table(runs, results) {
        let show = |index: usize| {
            let score = row.scores[index];
            score.map_or("-".to_owned(), |s| format!("{:.3} ± {:.3}", s.mean, s.std_dev))
        };
        let (similarity, dino) = match row.scores[1] {
            Some(_) => ("DINO to truth", show(1)),
            None => ("DINO to subject", show(3)),
        };
        print_result(&format!(
            "{:<16} {}  CLIP-T {}  {similarity} {dino}  {:.3} s a step",
            row.arm,
            counted(row.runs, "run"),
            show(0),
            row.seconds_per_step,
        ));
    }
}

fn print_strengths(evaluations: &[Evaluation], results: &ResultsFile<EvaluationResult>) {
    for row in strength_table(evaluations, results) {
        let at = row.at.iter().map(f64::to_string).collect::<Vec<_>>().join(", ");
        let mean = |index: usize| {
            row.scores[index].map_or("-".to_owned(), |score| format!("{:.3}", score.mean))
        };
        print_result(&format!(
            "{} at {at}: CLIP-T {}  DINO to truth {}  to subject {}  CLIP-I to style {}  drift {}",
            row.series,
            mean(0),
            mean(1),
            mean(2),
            mean(4),
            mean(5),
        ));
    }
}

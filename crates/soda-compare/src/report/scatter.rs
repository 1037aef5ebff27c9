//! The scatter plot of subject fidelity over prompt fidelity.

use maud::{Markup, PreEscaped, html};
use plotters::prelude::*;
use soda_train::plot::{color, draw_axes, svg};

use super::labels;
use crate::score_table::{ArmRow, CLIP_T, SCORES};
use crate::statistics::Summary;

/// The width and height of the figure in pixels.
const SIZE: (u32, u32) = (760, 480);

/// An arm of the figure.
struct Point<'a> {
    /// The index of the arm, which gives its color.
    index: usize,
    arm: &'a str,
    /// CLIP-T.
    x: Summary,
    /// The similarity to the subject.
    y: Summary,
}

impl Point<'_> {
    fn is_finite(&self) -> bool {
        self.x.mean.is_finite() && self.y.mean.is_finite()
    }
}

/// Draws the similarity `score` (an index of [`SCORES`]) over CLIP-T, one point per arm.
///
/// The bars are one standard error over the data sets. An arm whose score is not finite is named below the
/// figure.
pub(super) fn similarity_scatter(rows: &[ArmRow], score: usize) -> Markup {
    let points = rows.iter().enumerate().filter_map(|(index, row)| {
        let (x, y) = (row.over_data_sets[CLIP_T]?, row.over_data_sets[score]?);
        Some(Point { index, arm: &row.arm, x, y })
    });
    let (points, omitted): (Vec<_>, Vec<_>) = points.partition(Point::is_finite);
    html! {
        @if !points.is_empty() { (PreEscaped(draw(&points, score))) }
        @for point in &omitted {
            p { "Not drawn: " (point.arm) ", whose " (SCORES[score].0) " or CLIP-T is not a finite number." }
        }
    }
}

fn draw(points: &[Point<'_>], score: usize) -> String {
    let x = axis_range(points.iter().map(|point| point.x));
    let y = axis_range(points.iter().map(|point| point.y));
    svg(SIZE, |figure| {
        let mut chart = ChartBuilder::on(figure)
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(60)
            .build_cartesian_2d(x, y)?;
        draw_axes(&mut chart, SCORES[CLIP_T].0, SCORES[score].0)?;
        let mut bars = Vec::new();
        for Point { index, x, y, .. } in points {
            let color = color(*index);
            let (dx, dy) = (x.standard_error(), y.standard_error());
            for ends in [
                [(x.mean - dx, y.mean), (x.mean + dx, y.mean)],
                [(x.mean, y.mean + dy), (x.mean, y.mean - dy)],
            ] {
                chart.draw_series([PathElement::new(ends, color.stroke_width(1))])?;
                let [(left, top), (right, bottom)] = ends.map(|end| chart.backend_coord(&end));
                bars.push([left - 1, top - 1, right + 1, bottom + 1]);
            }
            chart.draw_series([Circle::new((x.mean, y.mean), 5, color.filled())])?;
        }
        // Labels are placed in pixels of the whole figure, where overlaps can be computed.
        let pixels = points.iter().map(|point| chart.backend_coord(&(point.x.mean, point.y.mean)));
        let names: Vec<&str> = points.iter().map(|point| point.arm).collect();
        let (across, down) = chart.plotting_area().get_pixel_range();
        let frame = [across.start, down.start, across.end, down.end];
        let corners = labels::label_corners(&pixels.collect::<Vec<_>>(), &names, &bars, frame);
        for (point, corner) in points.iter().zip(corners) {
            let style = ("sans-serif", labels::HEIGHT).into_font().color(&color(point.index));
            figure.draw(&Text::new(point.arm.to_owned(), corner, style))?;
        }
        Ok(())
    })
}

/// The range of an axis that shows finite `values` with their standard errors and a margin.
fn axis_range(values: impl Iterator<Item = Summary> + Clone) -> std::ops::Range<f64> {
    let low = values.clone().map(|v| v.mean - v.standard_error()).fold(f64::INFINITY, f64::min);
    let high = values.map(|v| v.mean + v.standard_error()).fold(f64::MIN, f64::max);
    let margin = 0.15 * (high - low).max(0.02);
    low - margin..high + margin
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(arm: &str, values: &[f64]) -> ArmRow {
        let summaries = vec![Summary::from_values(values); SCORES.len()];
        ArmRow {
            arm: arm.to_owned(),
            runs: 2,
            num_params: 1,
            file_size: 1,
            seconds_per_step: 1.0,
            peak_memory: None,
            scores: summaries.clone(),
            over_data_sets: summaries,
            against_first: vec![None; SCORES.len()],
        }
    }

    #[test]
    fn an_arm_with_nan_is_named_and_not_drawn() {
        let rows = [row("good", &[0.25, 0.5]), row("broken", &[0.25, f64::NAN])];
        let html = similarity_scatter(&rows, 1).into_string();
        assert!(html.contains("<svg") && !html.contains("NaN"), "{html}");
        assert!(html.contains("Not drawn: broken"), "{html}");
        let html = similarity_scatter(&rows[1..], 1).into_string();
        assert!(!html.contains("<svg") && html.contains("Not drawn: broken"), "{html}");
    }
}

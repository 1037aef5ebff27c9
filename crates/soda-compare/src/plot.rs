//! Figures as SVG: how faithful to subject and prompt each arm is, and its loss over the run.

use plotters::prelude::*;
use soda_train::plot::{Line, color, lines, mesh, svg};

use crate::labels;
use crate::plan::Run;
use crate::results::Record;
use crate::table::{CLIP_T, Row, SCORES};

/// Width and height of the figure.
const SIZE: (u32, u32) = (760, 480);

/// Fidelity to the subject over fidelity to the prompt, an arm a point, bars of one standard error over
/// the data sets; up and to the right is better. `up` is the place in [`SCORES`] of what is faithful to the subject.
pub(crate) fn pareto(rows: &[Row], up: usize) -> String {
    let points: Vec<_> = rows
        .iter()
        .enumerate()
        .filter_map(|(index, row)| {
            Some((index, row.arm.as_str(), row.over_data[CLIP_T]?, row.over_data[up]?))
        })
        .collect();
    if points.is_empty() {
        return String::new();
    }
    let range = |values: Vec<(f64, f64)>| {
        let low = values.iter().map(|(mean, error)| mean - error).fold(f64::INFINITY, f64::min);
        let high = values.iter().map(|(mean, error)| mean + error).fold(f64::MIN, f64::max);
        let margin = 0.15 * (high - low).max(0.02);
        low - margin..high + margin
    };
    let x = range(points.iter().map(|(.., x, _)| (x.mean, x.error())).collect());
    let y = range(points.iter().map(|(.., y)| (y.mean, y.error())).collect());
    svg(SIZE, |figure| {
        let mut chart = ChartBuilder::on(figure)
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(60)
            .build_cartesian_2d(x, y)?;
        mesh(&mut chart, SCORES[CLIP_T].0, SCORES[up].0)?;
        let mut bars = Vec::new();
        for (index, _, x, y) in &points {
            let color = color(*index);
            for ends in [
                [(x.mean - x.error(), y.mean), (x.mean + x.error(), y.mean)],
                [(x.mean, y.mean + y.error()), (x.mean, y.mean - y.error())],
            ] {
                chart.draw_series([PathElement::new(ends, color.stroke_width(1))])?;
                let [(left, top), (right, bottom)] = ends.map(|end| chart.backend_coord(&end));
                bars.push([left - 1, top - 1, right + 1, bottom + 1]);
            }
            chart.draw_series([Circle::new((x.mean, y.mean), 5, color.filled())])?;
        }
        // In pixels of the whole figure, where two names can be seen to cross.
        let seen = points.iter().map(|(_, _, x, y)| chart.backend_coord(&(x.mean, y.mean)));
        let names: Vec<&str> = points.iter().map(|(_, arm, ..)| *arm).collect();
        let (across, down) = chart.plotting_area().get_pixel_range();
        let frame = [across.start, down.start, across.end, down.end];
        let places = labels::places(&seen.collect::<Vec<_>>(), &names, &bars, frame);
        for ((index, arm, ..), place) in points.iter().zip(places) {
            let style = ("sans-serif", labels::HEIGHT).into_font().color(&color(*index));
            figure.draw(&Text::new((*arm).to_owned(), place, style))?;
        }
        Ok(())
    })
}

/// The loss over the run, from 0 to 1, one line an arm: the mean of its runs, each a running mean.
pub(crate) fn losses(arms: &[(&str, Vec<(&Run, &Record)>)]) -> String {
    let curves: Vec<Line> = arms
        .iter()
        .map(|(arm, runs)| {
            let records: Vec<&Record> = runs.iter().map(|(_, record)| *record).collect();
            let curve = mean_curve(&records);
            let last = curve.len().max(2) - 1;
            let points = curve.into_iter().enumerate();
            Line {
                name: (*arm).to_owned(),
                points: points.map(|(i, loss)| (i as f64 / last as f64, loss)).collect(),
                faint: false,
            }
        })
        .collect();
    lines("part of the run", "loss", &curves)
}

/// Losses jump with the timestep drawn; this many of the (at most 100) points are averaged.
const WINDOW: usize = 10;

fn mean_curve(records: &[&Record]) -> Vec<f64> {
    let shortest = records.iter().map(|record| record.measured.losses.len()).min().unwrap_or(0);
    let mean = |values: &mut dyn Iterator<Item = f32>| {
        let (sum, count) = values.fold((0.0, 0), |(sum, n), value| (sum + f64::from(value), n + 1));
        sum / f64::from(count.max(1))
    };
    (WINDOW.min(shortest)..=shortest)
        .filter(|end| *end > 0)
        .map(|end| {
            let start = end.saturating_sub(WINDOW);
            mean(&mut records.iter().flat_map(|record| record.measured.losses[start..end].to_vec()))
        })
        .collect()
}

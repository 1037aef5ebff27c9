//! Figures as SVG text: every browser shows it, nothing is linked.

use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

/// A figure that is drawn on.
pub type Figure<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Its axes.
pub type Chart<'a, 'b> =
    ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// Writing SVG to a string fails for want of memory only.
pub type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// A line of a figure.
#[derive(Clone, Debug)]
pub struct Line {
    /// What the legend calls it.
    pub name: String,
    /// Abscissa and ordinate; what is not finite is left out.
    pub points: Vec<(f64, f64)>,
    /// Thin and grey, behind the others.
    pub faint: bool,
}

/// Colours that can be told apart on white, also where red and green cannot (Tableau's, and two that are dark).
const COLORS: [RGBColor; 12] = [
    RGBColor(31, 119, 180),
    RGBColor(255, 127, 14),
    RGBColor(44, 160, 44),
    RGBColor(214, 39, 40),
    RGBColor(148, 103, 189),
    RGBColor(140, 86, 75),
    RGBColor(227, 119, 194),
    RGBColor(127, 127, 127),
    RGBColor(188, 189, 34),
    RGBColor(23, 190, 207),
    RGBColor(0, 0, 0),
    RGBColor(10, 60, 110),
];

/// The colour of the `index`-th of what a figure compares, the same in all figures of a page.
pub fn color(index: usize) -> RGBColor {
    COLORS[index % COLORS.len()]
}

/// Width and height of the part of a figure where the lines are.
const SIZE: (u32, u32) = (720, 320);
/// Pixels from one name of the legend to the next.
const ENTRY: u32 = 18;

/// Lines over one another, with a legend beside them; empty where there is nothing to draw. A line without points is
/// left out, and the others keep their colours.
pub fn lines(x: &str, y: &str, lines: &[Line]) -> String {
    let finite = |(x, y): &(f64, f64)| x.is_finite() && y.is_finite();
    let points = || lines.iter().flat_map(|line| line.points.iter().copied()).filter(finite);
    if points().next().is_none() {
        return String::new();
    }
    let range = |values: &dyn Fn() -> Vec<f64>, room: f64| {
        let low = values().into_iter().fold(f64::INFINITY, f64::min);
        let high = values().into_iter().fold(f64::NEG_INFINITY, f64::max);
        // A constant has a range too, or it could not be drawn.
        let room = room * (high - low).max(1e-3 * high.abs().max(1e-6));
        low - room..high + room.max(f64::MIN_POSITIVE)
    };
    let across = range(&|| points().map(|point| point.0).collect(), 0.01);
    let up = range(&|| points().map(|point| point.1).collect(), 0.05);
    let letters = lines.iter().map(|line| line.name.chars().count()).max().unwrap_or(0) as u32;
    let shown = lines.iter().filter(|line| line.points.iter().any(finite)).count() as u32;
    // A legend over the lines would hide what it names.
    let size = (SIZE.0 + 48 + 8 * letters, SIZE.1.max(24 + ENTRY * shown));
    svg(size, |figure| {
        let (lined, legend) = figure.split_horizontally(SIZE.0);
        let mut chart = ChartBuilder::on(&lined)
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(72)
            .build_cartesian_2d(across, up)?;
        mesh(&mut chart, x, y)?;
        let mut entry = 12;
        for faint in [true, false] {
            let alike = lines.iter().filter(|line| line.faint == faint);
            for (index, line) in alike.enumerate() {
                let style = if faint {
                    RGBColor(170, 190, 210).stroke_width(1)
                } else {
                    color(index).stroke_width(2)
                };
                let points: Vec<_> = line.points.iter().copied().filter(finite).collect();
                if points.is_empty() {
                    continue;
                }
                chart.draw_series(LineSeries::new(points, style))?;
                legend.draw(&PathElement::new([(8, entry + 7), (28, entry + 7)], style))?;
                let name = line.name.clone();
                legend.draw(&Text::new(name, (34, entry), ("sans-serif", 14)))?;
                entry += ENTRY as i32;
            }
        }
        Ok(())
    })
}

/// Axes with their names, and a line at each number.
pub fn mesh(chart: &mut Chart<'_, '_>, x: &str, y: &str) -> Drawn {
    let number = |value: &f64| {
        let text = format!("{value:.3}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    chart
        .configure_mesh()
        .x_desc(x)
        .y_desc(y)
        .x_label_formatter(&number)
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .draw()
}

/// What `draw` draws on a figure of `size` pixels, or nothing where it fails.
pub fn svg(size: (u32, u32), draw: impl FnOnce(&Figure<'_>) -> Drawn) -> String {
    let mut text = String::new();
    let figure = SVGBackend::with_string(&mut text, size).into_drawing_area();
    // A figure that cannot be drawn is left out; the numbers stand in the tables.
    let drawn = draw(&figure).and_then(|()| figure.present());
    drop(figure);
    if drawn.is_ok() { text } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_a_constant_and_what_is_no_number_still_draw() {
        let line = |points: &[(f64, f64)]| Line {
            name: "loss <a>".to_owned(),
            points: points.to_vec(),
            faint: false,
        };
        for points in [
            &[(1.0, 0.5)][..],
            &[(1.0, 0.0), (2.0, 0.0)],
            &[(1.0, 2.0), (2.0, f64::NAN), (3.0, 1.0)],
        ] {
            let svg = lines("step", "loss", &[line(points)]);
            assert!(svg.contains("loss &lt;a&gt;") && !svg.contains("NaN"), "{svg}");
        }
        assert_eq!(lines("step", "loss", &[line(&[])]), "");
        // One that is left out takes no other's colour.
        let some = line(&[(1.0, 0.5), (2.0, 0.25)]);
        let second = lines("step", "loss", &[line(&[]), some.clone()]);
        assert!(second.contains("#FF7F0E") && !second.contains("#1F77B4"), "{second}");
        assert_eq!(second.matches("loss &lt;a&gt;").count(), 1, "{second}");
        assert_eq!(lines("step", "loss", &[line(&[(0.0, f64::NAN)])]), "");
    }
}

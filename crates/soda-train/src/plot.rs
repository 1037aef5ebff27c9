//! Figures as SVG text: every browser shows it, nothing is linked.

use plotters::coord::Shift;
use plotters::prelude::*;

/// A figure that is drawn on.
pub type Figure<'a> = DrawingArea<SVGBackend<'a>, Shift>;

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

/// Lines over one another, with a legend; empty where there is nothing to draw.
pub fn lines(x: &str, y: &str, lines: &[Line]) -> String {
    let points = || {
        let all = lines.iter().flat_map(|line| line.points.iter().copied());
        all.filter(|(x, y)| x.is_finite() && y.is_finite())
    };
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
    svg((720, 320), |figure| {
        let mut chart = ChartBuilder::on(figure)
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(72)
            .build_cartesian_2d(across, up)?;
        chart.configure_mesh().x_desc(x).y_desc(y).draw()?;
        let mut color = 0;
        for faint in [true, false] {
            for line in lines.iter().filter(|line| line.faint == faint) {
                let style = if faint {
                    RGBColor(170, 190, 210).stroke_width(1)
                } else {
                    color += 1;
                    Palette99::pick(color).stroke_width(2)
                };
                let points = line.points.iter().copied();
                let points = points.filter(|(x, y)| x.is_finite() && y.is_finite());
                chart
                    .draw_series(LineSeries::new(points, style))?
                    .label(&line.name)
                    .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style));
            }
        }
        chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK).draw()
    })
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
        assert_eq!(lines("step", "loss", &[line(&[(0.0, f64::NAN)])]), "");
    }
}

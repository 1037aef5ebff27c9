//! Aspect-ratio buckets: the training size of each image (kohya's sd-scripts, `make_bucket_resolutions`).
//!
//! With the base model's side `r`, a step `s` and sides from `a` to `b`, the sizes are `w x h` and `h x w`
//! for `w = a, a + s, ... <= b` with the largest `h <= min(b, r² / w)` that is a multiple of `s` and at least
//! `a`.
//!
//! An image gets the size with the least distance `|ln(w / h) - ln(W / H)|` of aspect ratios. sd-scripts
//! takes the difference of the ratios instead, which treats portrait and landscape images differently.

use crate::config::BucketConfig;
use crate::error::ConfigError;

/// The width and height of a training size, in pixels.
pub(crate) type Size = [u32; 2];

/// The allowed training sizes.
#[derive(Clone, Debug)]
pub(crate) struct Buckets {
    /// At least one size, without duplicates.
    sizes: Vec<Size>,
    step: u32,
    upscale: bool,
}

impl Buckets {
    /// The sizes for a base model of `side` pixels whose autoencoder has `grid` pixels to a latent. Without
    /// `config` the only size is the square.
    ///
    /// # Errors
    /// Returns an error in these cases:
    ///
    /// - The step is not a multiple of the grid, or a side is not a multiple of the step.
    /// - The base model's side is outside the range of sides.
    /// - No size but the square is left.
    pub(crate) fn new(
        config: Option<&BucketConfig>,
        side: usize,
        grid: usize,
    ) -> Result<Self, ConfigError> {
        let Some(config) = config else {
            return Ok(Self { sizes: vec![[side as u32; 2]], step: side as u32, upscale: true });
        };
        let refuse = |field, value, reason| Err(ConfigError::Buckets { field, value, reason });
        let step = config.step;
        if step == 0 || !step.is_multiple_of(grid) {
            let reason = format!("it must be a multiple of {grid}, the autoencoder's grid");
            return refuse("buckets.step", step, reason);
        }
        let (least, most) = (
            config.min_side.unwrap_or((side / 2 / step).max(1) * step),
            config.max_side.unwrap_or(2 * side / step * step),
        );
        for (field, value) in [("buckets.min_side", least), ("buckets.max_side", most)] {
            if value == 0 || !value.is_multiple_of(step) {
                let reason = format!("it must be a multiple of `buckets.step`, {step}");
                return refuse(field, value, reason);
            }
        }
        if least > side {
            let reason = format!("it must be at most {side}, the side of a square image");
            return refuse("buckets.min_side", least, reason);
        }
        if most < side {
            let reason = format!("it must be at least {side}, the side of a square image");
            return refuse("buckets.max_side", most, reason);
        }
        let sizes = sizes(side, step, least, most);
        if sizes.len() < 2 {
            let reason = format!(
                "no size but the square is left for squares of {side} pixels; set a smaller `buckets.step` or \
                 sides further apart"
            );
            return refuse("buckets.step", step, reason);
        }
        Ok(Self { sizes, step: step as u32, upscale: config.upscale })
    }

    /// The training size of an image of these dimensions (width, height). `None` if a side is below one step
    /// and images are not upscaled.
    pub(crate) fn size_for(&self, (width, height): (u32, u32)) -> Option<Size> {
        let ratio = |[w, h]: Size| (f64::from(w) / f64::from(h.max(1))).ln();
        let own = ratio([width, height]);
        let distance = |size: &Size| (ratio(*size) - own).abs();
        // If two sizes are equally near, the larger one is taken.
        let nearest = self.sizes.iter().min_by(|a, b| {
            let area = |size: &Size| size[0] * size[1];
            distance(a).total_cmp(&distance(b)).then(area(b).cmp(&area(a)))
        });
        let size = *nearest?;
        if self.upscale || (width >= size[0] && height >= size[1]) {
            return Some(size);
        }
        let fit = |own: u32, side: u32| (own / self.step * self.step).min(side);
        let size = [fit(width, size[0]), fit(height, size[1])];
        (size[0] > 0 && size[1] > 0).then_some(size)
    }

    /// The pixels between two sizes.
    pub(crate) fn step(&self) -> u32 {
        self.step
    }
}

/// All sizes, without duplicates.
fn sizes(side: usize, step: usize, least: usize, most: usize) -> Vec<Size> {
    let square = side / step * step;
    let mut sizes = vec![[square as u32; 2]];
    for width in (least..=most).step_by(step) {
        let height = (side * side / width / step * step).min(most);
        if height >= least {
            sizes.extend([[width as u32, height as u32], [height as u32, width as u32]]);
        }
    }
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    fn buckets(config: &BucketConfig) -> Buckets {
        Buckets::new(Some(config), 512, 8).unwrap()
    }

    /// The list of sd-scripts for 512 pixels.
    #[test]
    fn the_sizes_are_those_of_sd_scripts() {
        let found = buckets(&BucketConfig::default()).sizes;
        let wide = [[832, 256], [896, 256], [960, 256], [1024, 256], [704, 320], [768, 320]];
        let expected =
            wide.into_iter().chain([[640, 384], [576, 448]]).flat_map(|[w, h]| [[w, h], [h, w]]);
        let mut expected: Vec<Size> = expected.chain([[512, 512]]).collect();
        expected.sort_unstable();
        assert_eq!(found, expected);
    }

    #[test]
    fn an_image_gets_the_nearest_size_and_a_rotated_image_the_rotated_size() {
        let buckets = buckets(&BucketConfig::default());
        for dimensions in [(1000, 1000), (1600, 1200), (3000, 1000), (10_000, 10), (640, 427)] {
            let size = buckets.size_for(dimensions).unwrap();
            let rotated = buckets.size_for((dimensions.1, dimensions.0)).unwrap();
            assert_eq!([size[1], size[0]], rotated, "{dimensions:?}");
            let ratio = |w: u32, h: u32| (f64::from(w) / f64::from(h)).ln();
            let own = ratio(dimensions.0, dimensions.1);
            let found = (ratio(size[0], size[1]) - own).abs();
            assert!(buckets.sizes.iter().all(|s| (ratio(s[0], s[1]) - own).abs() >= found));
        }
        assert_eq!(buckets.size_for((100, 100)), Some([512, 512]));
        let square = Buckets::new(None, 512, 8).unwrap();
        assert_eq!(square.size_for((3000, 1000)), Some([512, 512]));
    }

    #[test]
    fn without_upscaling_the_size_is_at_most_the_image() {
        let config = BucketConfig { upscale: false, ..BucketConfig::default() };
        let buckets = buckets(&config);
        assert_eq!(buckets.size_for((2048, 2048)), Some([512, 512]));
        assert_eq!(buckets.size_for((300, 200)), Some([256, 192]));
        // This image is narrower than its bucket.
        assert_eq!(buckets.size_for((130, 3000)), Some([128, 1024]));
        assert_eq!(buckets.size_for((63, 200)), None);
    }

    #[test]
    fn impossible_settings_are_errors_that_name_the_field() {
        let refused = |config: BucketConfig, side| {
            Buckets::new(Some(&config), side, 8).unwrap_err().to_string()
        };
        let config = BucketConfig::default;
        assert!(refused(BucketConfig { step: 12, ..config() }, 512).contains("multiple of 8"));
        assert!(refused(BucketConfig { step: 0, ..config() }, 512).contains("multiple of 8"));
        let uneven = refused(BucketConfig { min_side: Some(100), ..config() }, 512);
        assert!(uneven.contains("`buckets.min_side` is 100") && uneven.contains("64"), "{uneven}");
        assert!(
            refused(BucketConfig { min_side: Some(576), ..config() }, 512).contains("at most 512")
        );
        assert!(
            refused(BucketConfig { max_side: Some(448), ..config() }, 512).contains("at least")
        );
        assert!(refused(config(), 64).contains("square"));
    }
}

//! The sequences of tokens of image and text, with their padding and positions.
//!
//! Each sequence is padded to a multiple of 32 with a learnt token, which the others see. Token `i` of a text
//! and its padding is at `(i, 0, 0)`, counted from 1. After the last one, at `(m, 0, 0)`, the tokens of the
//! image are at `(m + 1, row, column)`, and the padding of the image is at `(0, 0, 0)`.
//! Texts of a batch differ in length: tokens behind a text's own padding are filled in and seen by none.
//! Mirrors `patchify_and_embed` of diffusers' `ZImageTransformer2DModel`.

use burn::tensor::{Bool, Tensor, TensorData};

use super::config::{AXES, MULTIPLE, PATCH};
use crate::layers::padded;

/// The lengths of all sequences of a batch.
#[derive(Debug, Clone)]
pub(super) struct Sequences {
    /// Rows and columns of the image, in tokens.
    pub(super) grid: [usize; 2],
    /// Tokens of each text, without padding.
    texts: Vec<usize>,
}

impl Sequences {
    /// The sequences of latents of `height` x `width` with `texts` of these numbers of tokens.
    pub(super) fn new([height, width]: [usize; 2], texts: Vec<usize>) -> Self {
        Self { grid: [height / PATCH, width / PATCH], texts }
    }

    /// Tokens of the image, without padding.
    pub(super) fn pixels(&self) -> usize {
        self.grid[0] * self.grid[1]
    }

    /// Tokens of the image with padding.
    pub(super) fn image(&self) -> usize {
        self.pixels().next_multiple_of(MULTIPLE)
    }

    /// Tokens of each text with its padding.
    pub(super) fn padded_texts(&self) -> Vec<usize> {
        self.texts.iter().map(|tokens| tokens.next_multiple_of(MULTIPLE)).collect()
    }

    /// Tokens of the longest text, without padding and with it.
    pub(super) fn longest_text(&self) -> (usize, usize) {
        let longest = self.texts.iter().copied().max().unwrap_or(0);
        (longest, longest.next_multiple_of(MULTIPLE))
    }

    /// The positions of all tokens, image first, for each sample, or once if they are the same.
    pub(super) fn positions(&self) -> Vec<Vec<[usize; AXES]>> {
        let (_, longest) = self.longest_text();
        let of_sample = |text: usize| {
            let [rows, columns] = self.grid;
            let image = (0..rows).flat_map(move |y| (0..columns).map(move |x| [text + 1, y, x]));
            let padding = std::iter::repeat_n([0; AXES], self.image() - self.pixels());
            image.chain(padding).chain((1..=longest).map(|place| [place, 0, 0])).collect()
        };
        let texts = self.padded_texts();
        match texts.iter().all(|text| *text == longest) {
            true => vec![of_sample(longest)],
            false => texts.into_iter().map(of_sample).collect(),
        }
    }

    /// Puts padding behind the tokens of the image: `[b, n, c]` with the token `[1, c]`.
    pub(super) fn pad_image(&self, tokens: Tensor<3>, padding: Tensor<2>) -> Tensor<3> {
        let [batch, found, width] = tokens.dims();
        let missing = self.image() - found;
        if missing == 0 {
            return tokens;
        }
        let padding = padding.unsqueeze::<3>().expand([batch, missing, width]);
        Tensor::cat(vec![tokens, padding], 1)
    }

    /// Puts padding behind the tokens of each text: `[b, n, c]` with the token `[1, c]`.
    pub(super) fn pad_text(&self, tokens: Tensor<3>, padding: Tensor<2>) -> Tensor<3> {
        let [batch, _, width] = tokens.dims();
        let (_, longest) = self.longest_text();
        if self.texts.iter().all(|text| *text == longest) {
            return tokens;
        }
        let is_padding: Vec<bool> =
            self.texts.iter().flat_map(|text| (0..longest).map(move |at| at >= *text)).collect();
        let data = TensorData::new(is_padding, [batch, longest, 1]);
        let is_padding = Tensor::<3, Bool>::from_data(data, &tokens.device());
        let shape = [batch, longest, width];
        padded(tokens, longest)
            .mask_where(is_padding.expand(shape), padding.unsqueeze::<3>().expand(shape))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_the_padding_of_a_text_and_not_that_of_an_image() {
        let sequences = Sequences::new([4, 6], vec![3, 33]);
        assert_eq!((sequences.pixels(), sequences.image()), (6, 32));
        assert_eq!((sequences.padded_texts(), sequences.longest_text()), (vec![32, 64], (33, 64)));
        let positions = sequences.positions();
        assert_eq!(positions.len(), 2);
        for (positions, place) in positions.iter().zip([33, 65]) {
            assert_eq!(positions.len(), 32 + 64);
            assert_eq!(positions[..2], [[place, 0, 0], [place, 0, 1]]);
            assert_eq!(positions[5], [place, 1, 2]);
            assert!(positions[6..32].iter().all(|position| *position == [0; 3]));
            assert_eq!((positions[32], positions[95]), ([1, 0, 0], [64, 0, 0]));
        }
        // Texts of one padded length share their positions.
        assert_eq!(Sequences::new([2, 2], vec![1, 32]).positions().len(), 1);
    }
}

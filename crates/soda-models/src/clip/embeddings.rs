//! Tokens and positions to vectors, the input of CLIP's text encoder.
//!
//! Words can be added to the vocabulary (Textual Inversion, Gal et al., arXiv 2208.01618). Their vectors stand apart from
//! the checkpoint's table, which is frozen and large: a gradient of the whole of it would be computed for a few rows.

use burn::module::{Module, Param};
use burn::nn::Embedding;
use burn::tensor::{Int, Tensor};
use soda_kernels::matmul;

/// Tokens and positions to vectors.
#[derive(Module, Debug)]
pub struct TextEmbeddings {
    /// One vector for each token.
    pub token_embedding: Embedding,
    /// One vector for each position.
    pub position_embedding: Embedding,
    /// Tokens that were added to the vocabulary, whose vectors can learn while all others stand still.
    pub new_tokens: Option<NewTokens>,
}

/// Tokens that follow those of the checkpoint's vocabulary.
#[derive(Module, Debug)]
pub struct NewTokens {
    /// Their vectors, `[m, width]`.
    pub vectors: Param<Tensor<2>>,
    /// What those were before anything was learnt.
    pub start: Tensor<2>,
    /// The id of the first.
    pub first: usize,
}

impl TextEmbeddings {
    /// The encoder's input for tokens `[b, n]`, `[b, n, width]`.
    ///
    /// # Panics
    ///
    /// If `n` is more than the positions that there are.
    #[track_caller]
    pub fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let [_, tokens] = ids.dims();
        let positions = self.position_embedding.weight.val();
        let longest = positions.dims()[0];
        assert!(tokens <= longest, "{tokens} tokens, but the text encoder has {longest} positions");
        self.tokens(ids) + positions.narrow(0, 0, tokens).unsqueeze::<3>()
    }

    /// Adds tokens with these vectors `[k, width]` behind all others; `first` is the id of the first.
    pub(crate) fn add(&mut self, first: usize, vectors: Tensor<2>) {
        self.new_tokens = Some(match self.new_tokens.take() {
            None => {
                NewTokens { vectors: Param::from_tensor(vectors.clone()), start: vectors, first }
            }
            Some(NewTokens { vectors: old, start, first }) => {
                let behind = |old| Tensor::cat(vec![old, vectors.clone()], 0);
                NewTokens {
                    vectors: Param::from_tensor(behind(old.val())),
                    start: behind(start),
                    first,
                }
            }
        });
    }

    /// `ids` with tokens of the checkpoint's vocabulary in the place of new ones.
    pub(super) fn known(&self, ids: Tensor<2, Int>) -> Tensor<2, Int> {
        match &self.new_tokens {
            Some(new) => {
                let is_new = ids.clone().greater_equal_scalar(new.first as i64);
                ids.mask_fill(is_new, 0)
            }
            None => ids,
        }
    }

    /// The vectors of tokens `[b, n]`, `[b, n, width]`.
    fn tokens(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let Some(NewTokens { vectors, first, .. }) = &self.new_tokens else {
            return self.token_embedding.forward(ids);
        };
        let ([batch, tokens], first) = (ids.dims(), *first as i64);
        let vectors = vectors.val();
        let [count, width] = vectors.dims();
        // A product instead of a lookup, since its gradient is a product as well: no scattered sums.
        let columns = Tensor::<1, Int>::arange(first..first + count as i64, &ids.device());
        let flat = ids.clone().reshape([batch * tokens, 1]);
        let chosen = flat.clone().expand([batch * tokens, count]).equal(columns.unsqueeze());
        let new =
            matmul(chosen.float().cast(vectors.dtype()), vectors).reshape([batch, tokens, width]);
        let is_new = flat.greater_equal_scalar(first).reshape([batch, tokens, 1]);
        let known = self.token_embedding.forward(self.known(ids));
        known.mask_where(is_new.expand([batch, tokens, width]), new)
    }

    /// The same with new tokens in the table of all.
    pub(super) fn with_one_table(mut self) -> Self {
        let Some(NewTokens { vectors, first, .. }) = self.new_tokens.take() else { return self };
        let known = self.token_embedding.weight.val();
        let ([rows, _], new) = (known.dims(), vectors.val().cast(known.dtype()));
        let end = first + new.dims()[0];
        let mut parts = vec![known.clone().narrow(0, 0, first), new];
        if end < rows {
            // Of a vocabulary that has more vectors than tokens.
            parts.push(known.narrow(0, end, rows - end));
        }
        self.token_embedding.weight = Param::from_tensor(Tensor::cat(parts, 0));
        self
    }
}

//! Token and position embeddings, the input of CLIP's text encoder.
//!
//! Tokens can be added to the vocabulary (Textual Inversion, Gal et al., arXiv 2208.01618). Their vectors are
//! kept apart from the checkpoint's table, which is frozen and large. A gradient of the whole table would be
//! computed for a few rows.

use burn::module::{Module, Param};
use burn::nn::Embedding;
use burn::tensor::{Int, Tensor};
use soda_kernels::matmul;

/// Token and position embeddings.
#[derive(Module, Debug)]
pub struct TextEmbeddings {
    /// Embedding table of the checkpoint's tokens.
    pub token_embedding: Embedding,
    /// Embedding table of the positions.
    pub position_embedding: Embedding,
    /// Tokens that were added to the vocabulary. Their vectors can be trained while the tables are frozen.
    pub new_tokens: Option<NewTokens>,
}

/// Tokens whose ids follow those of the checkpoint's vocabulary.
#[derive(Module, Debug)]
pub struct NewTokens {
    /// Embeddings of the tokens, `[m, width]`.
    pub vectors: Param<Tensor<2>>,
    /// Embeddings of the tokens before training, `[m, width]`. Not saved.
    pub initial: Tensor<2>,
    /// Id of the first token.
    pub first: usize,
}

impl TextEmbeddings {
    /// Embeds token `ids` `[b, n]`. Returns `[b, n, width]`.
    ///
    /// # Panics
    ///
    /// If `n` exceeds the number of positions.
    #[track_caller]
    pub fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let [_, tokens] = ids.dims();
        let positions = self.position_embedding.weight.val();
        let longest = positions.dims()[0];
        assert!(tokens <= longest, "{tokens} tokens, but the text encoder has {longest} positions");
        self.tokens(ids) + positions.narrow(0, 0, tokens).unsqueeze::<3>()
    }

    /// Adds tokens with embeddings `vectors` `[k, width]` after all others. `first` is the id of the first
    /// one.
    pub(crate) fn add(&mut self, first: usize, vectors: Tensor<2>) {
        self.new_tokens = Some(match self.new_tokens.take() {
            None => {
                NewTokens { vectors: Param::from_tensor(vectors.clone()), initial: vectors, first }
            }
            Some(NewTokens { vectors: old, initial, first }) => {
                let behind = |old| Tensor::cat(vec![old, vectors.clone()], 0);
                NewTokens {
                    vectors: Param::from_tensor(behind(old.val())),
                    initial: behind(initial),
                    first,
                }
            }
        });
    }

    /// Replaces the ids of new tokens by 0, a token of the checkpoint's vocabulary.
    pub(super) fn known(&self, ids: Tensor<2, Int>) -> Tensor<2, Int> {
        match &self.new_tokens {
            Some(new) => {
                let is_new = ids.clone().greater_equal_scalar(new.first as i64);
                ids.mask_fill(is_new, 0)
            }
            None => ids,
        }
    }

    /// Looks up the embeddings of tokens `[b, n]`. Returns `[b, n, width]`.
    fn tokens(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let Some(NewTokens { vectors, first, .. }) = &self.new_tokens else {
            return self.token_embedding.forward(ids);
        };
        let ([batch, tokens], first) = (ids.dims(), *first as i64);
        let vectors = vectors.val();
        let [count, width] = vectors.dims();
        // A matrix product instead of a lookup: its gradient is a product as well, without scattered sums.
        let columns = Tensor::<1, Int>::arange(first..first + count as i64, &ids.device());
        let flat = ids.clone().reshape([batch * tokens, 1]);
        let chosen = flat.clone().expand([batch * tokens, count]).equal(columns.unsqueeze());
        let new =
            matmul(chosen.float().cast(vectors.dtype()), vectors).reshape([batch, tokens, width]);
        let is_new = flat.greater_equal_scalar(first).reshape([batch, tokens, 1]);
        let known = self.token_embedding.forward(self.known(ids));
        known.mask_where(is_new.expand([batch, tokens, width]), new)
    }

    /// Moves the embeddings of new tokens into the table.
    pub(super) fn with_merged_tokens(mut self) -> Self {
        let Some(NewTokens { vectors, first, .. }) = self.new_tokens.take() else { return self };
        let known = self.token_embedding.weight.val();
        let ([rows, _], new) = (known.dims(), vectors.val().cast(known.dtype()));
        let end = first + new.dims()[0];
        let mut parts = vec![known.clone().narrow(0, 0, first), new];
        if end < rows {
            // A checkpoint may have more embeddings than its vocabulary has tokens.
            parts.push(known.narrow(0, end, rows - end));
        }
        self.token_embedding.weight = Param::from_tensor(Tensor::cat(parts, 0));
        self
    }
}

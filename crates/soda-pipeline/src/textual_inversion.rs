//! The embeddings of an adapter on a pipeline (Textual Inversion, Gal et al., arXiv 2208.01618).

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};
use soda_models::pipeline::{Pipeline, TokenEmbedding};

use crate::component::Component;
use crate::error::PipelineError;
use crate::file::EmbeddingVectors;

/// Copies the vectors of an embedding to the host: its token, and the vectors for each text encoder.
pub fn embedding_vectors(embedding: TokenEmbedding) -> (String, EmbeddingVectors) {
    let TokenEmbedding { token, first, second } = embedding;
    let first = [(Component::TextEncoder, first.into_data())];
    let second = second.map(|vectors| (Component::TextEncoder2, vectors.into_data()));
    (token, first.into_iter().chain(second).collect())
}

/// Adds embeddings to the vocabulary of the pipeline; `adapter` is the name of their file.
///
/// # Errors
/// [`PipelineError::IncompleteEmbedding`] and [`PipelineError::Embedding`].
pub(crate) fn add_embeddings(
    pipeline: &mut Pipeline,
    embeddings: &BTreeMap<String, EmbeddingVectors>,
    adapter: &str,
) -> Result<(), PipelineError> {
    for (token, vectors) in embeddings {
        let embedding = on_device(token, vectors, &pipeline.device).ok_or_else(|| {
            PipelineError::IncompleteEmbedding { adapter: adapter.to_owned(), token: token.clone() }
        })?;
        pipeline
            .add_token_embedding(&embedding)
            .map_err(|source| PipelineError::Embedding { adapter: adapter.to_owned(), source })?;
    }
    Ok(())
}

/// Uploads the vectors of a token; `None` without vectors for the first text encoder.
fn on_device(token: &str, vectors: &EmbeddingVectors, device: &Device) -> Option<TokenEmbedding> {
    let upload = |component| {
        let data: &TensorData = vectors.get(&component)?;
        Some(Tensor::<2>::from_data(data.clone(), device))
    };
    let first = upload(Component::TextEncoder)?;
    Some(TokenEmbedding { token: token.to_owned(), first, second: upload(Component::TextEncoder2) })
}

//! What a model does with a request, at once or piece by piece.

use mlxgk_kv_cache::KvCache;

use crate::{
    AssistedRequest, Generation, Model, Plan, Result, TokenStream, guardrails, stream::with_cache,
};

impl Model {
    /// Continues the request's prompts to their end.
    ///
    /// ```
    /// use mlx_genkit::{ComputeDtype, Model, Request};
    ///
    /// let model = Model::bundled(ComputeDtype::Auto)?;
    /// println!("{}", model.generate(Request::new("Once upon a time"))?.sequences[0].text);
    /// # Ok::<(), mlx_genkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// When a prompt or a field of the configuration is wrong, the model fails, or one of the sequences
    /// cannot be continued (a grammar without a next token, scores that are NaN, a criterion that
    /// fails). In a [`Batch`](crate::Batch) such a sequence ends alone.
    pub fn generate<'a>(&'a self, request: impl Into<AssistedRequest<'a>>) -> Result<Generation> {
        Ok(self.run(request.into())?.0)
    }

    /// As [`generate`](Self::generate), and gives back the cache with all that the model was fed, to be
    /// resumed in [`Request::cache`](crate::Request::cache).
    ///
    /// # Errors
    /// As [`generate`](Self::generate), and when the request is one whose cache cannot be resumed: one with
    /// several sequences, guidance or contrastive search.
    pub fn generate_with_cache<'a>(
        &'a self,
        request: impl Into<AssistedRequest<'a>>,
    ) -> Result<(Generation, KvCache)> {
        with_cache(self.run(request.into())?)
    }

    fn run<'a>(
        &'a self,
        mut request: AssistedRequest<'a>,
    ) -> Result<(Generation, Option<KvCache>)> {
        match request.request.guardrails.take() {
            Some(guardrails) => guardrails::run(self, request, &guardrails),
            None => self.plan(request)?.run(),
        }
    }

    /// Starts the request and returns an iterator over its tokens. While the caller handles one, the
    /// model is at work on the next.
    ///
    /// # Errors
    /// As [`generate`](Self::generate), and when the request asks for beams, which are ranked at the end
    /// only.
    pub fn stream<'a>(
        &'a self,
        request: impl Into<AssistedRequest<'a>>,
    ) -> Result<TokenStream<'a>> {
        self.plan(request)?.stream()
    }

    /// Checks a request and settles everything but the tokens; the device does nothing yet.
    ///
    /// # Errors
    /// When a prompt or a field of the configuration is wrong, or parts of the request do not go
    /// together (see [`Abilities`](crate::Abilities)).
    pub fn plan<'a>(&'a self, request: impl Into<AssistedRequest<'a>>) -> Result<Plan<'a>> {
        Plan::new(self, request.into())
    }
}

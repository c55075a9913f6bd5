//! Text to token ids and back, such that user text never becomes a control token.
//!
//! A Hugging Face tokenizer finds its *added tokens* (`<|im_end|>`, `<think>`, …)
//! anywhere in a text, so a document that spells one would speak to the model
//! with the template's voice. Here the two are kept apart: [`Tokenizer::encode`]
//! runs a copy of the tokenizer without added tokens, and [`Tokenizer::control`]
//! is the only way to such a token's id.

mod blanks;
mod words;

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use tokenizers::{
    AddedVocabulary, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    pre_tokenizers::metaspace::PrependScheme,
};

use crate::error::{Error, Result, listed};

use blanks::Short;
use words::Words;

/// A checkpoint's tokenizer. Cheap to clone.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    /// The tokenizer without added tokens, post-processing, truncation and padding.
    plain: tokenizers::Tokenizer,
    /// Words seen before, if this tokenizer can be used word by word.
    words: Option<Words>,
    /// Whether a run of white space is to it what one space is.
    single_spaced: bool,
    /// Text of every added token, and its id.
    controls: BTreeMap<String, Control>,
    /// Ids of the added tokens, sorted.
    control_ids: Vec<u32>,
    /// What a template has to begin with.
    beginning: Beginning,
    /// One past the largest id.
    vocab_size: usize,
    /// An upper bound of the bytes of text that one token stands for.
    longest_token_bytes: usize,
}

/// What the whole tokenizer does where a text begins, and the plain one does not.
#[derive(Clone, Debug, Default)]
struct Beginning {
    /// Control tokens that it puts before a text, as `<|begin_of_text|>`.
    added: Vec<u32>,
    /// Whether it puts a space before what begins a text, and before nothing else.
    spaced: bool,
}

/// An added token.
#[derive(Clone, Copy, Debug)]
struct Control {
    id: u32,
    /// Whether it swallows neighbouring white space or wants word boundaries.
    contextual: bool,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Tokenizer")
            .field("vocab_size", &self.inner.vocab_size)
            .field("controls", &self.inner.control_ids.len())
            .finish_non_exhaustive()
    }
}

/// A control token found in a literal text, see [`Tokenizer::find_control`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundControl {
    /// Where its text lies.
    pub range: Range<usize>,
    /// Its id.
    pub id: u32,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`; `origin` (its path) begins every error message.
    ///
    /// Refused with `Invalid`: a file that is no tokenizer, one whose control
    /// tokens can be reached by plain text, and one that begins a text in a way that templates cannot express.
    pub fn from_bytes(bytes: &[u8], origin: &str) -> Result<Self> {
        let mut plain = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|cause| Error::invalid(origin, format!("not a tokenizer.json: {cause}")))?;
        let mut controls = BTreeMap::new();
        for (&id, token) in plain.get_added_vocabulary().get_added_tokens_decoder() {
            let contextual = token.lstrip || token.rstrip || token.single_word;
            controls.insert(token.content.clone(), Control { id, contextual });
        }
        let (largest_id, longest_token_bytes) = plain
            .get_vocab(true)
            .iter()
            .fold((0, 1), |(id, bytes), (text, &other)| (id.max(other), bytes.max(text.len())));
        plain.with_padding(None);
        plain
            .with_truncation(None)
            .map_err(|cause| Error::internal("a tokenizer kept its truncation").with_cause(cause))?;
        let added = added_before(&plain).map_err(|cause| Error::invalid(origin, cause))?;
        plain.with_added_vocabulary(AddedVocabulary::new());
        plain.with_post_processor(None::<PostProcessorWrapper>);
        let spaced = take_first_space(&mut plain);
        let mut control_ids: Vec<u32> = controls.values().map(|control: &Control| control.id).collect();
        control_ids.sort_unstable();
        let vocab_size = largest_id as usize + 1;
        let part =
            |part: serde_json::Result<serde_json::Value>| part.unwrap_or(serde_json::Value::Bool(false));
        let normalizer = part(serde_json::to_value(plain.get_normalizer()));
        let pre_tokenizer = part(serde_json::to_value(plain.get_pre_tokenizer()));
        if pre_tokenizer.to_string().contains("\"prepend_scheme\":\"first\"") {
            let problem = "pre_tokenizer: prepend_scheme \"first\" is not supported within a sequence";
            return Err(Error::invalid(origin, problem));
        }
        let words = words::splits_at_spaces(&normalizer, &pre_tokenizer).then(Words::default);
        let single_spaced = words.is_some() && words::spaces_singly(&normalizer);
        let beginning = Beginning { added, spaced };
        let inner = Inner {
            plain,
            words,
            single_spaced,
            controls,
            control_ids,
            beginning,
            vocab_size,
            longest_token_bytes,
        };
        let tokenizer = Self { inner: Arc::new(inner) };
        tokenizer.check_controls(origin)?;
        Ok(tokenizer)
    }

    /// The same vocabulary for texts that are to be tokenized as they are written, line breaks
    /// included.
    pub fn without_normalizer(&self) -> Result<Self> {
        let mut plain = self.inner.plain.clone();
        plain
            .with_normalizer(None::<NormalizerWrapper>)
            .map_err(|cause| Error::internal("a tokenizer kept its normalizer").with_cause(cause))?;
        let Inner { controls, control_ids, beginning, vocab_size, longest_token_bytes, .. } = &*self.inner;
        let inner = Inner {
            plain,
            words: None,
            single_spaced: false,
            controls: controls.clone(),
            control_ids: control_ids.clone(),
            beginning: beginning.clone(),
            vocab_size: *vocab_size,
            longest_token_bytes: *longest_token_bytes,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// No control token's text may reach a control token's id as plain text.
    fn check_controls(&self, origin: &str) -> Result<()> {
        for (text, control) in &self.inner.controls {
            if self.encode(text)?.contains(&control.id) {
                return Err(Error::invalid(
                    origin,
                    format!(
                        "the plain text {text:?} becomes the control token {}: a user's text could forge it",
                        control.id
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Token ids of a plain text: control tokens in it are ordinary characters.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        self.encode_into(text, &mut ids)?;
        Ok(ids)
    }

    /// Appends the token ids of a plain text to `ids`.
    pub fn encode_into(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        match &self.inner.words {
            _ if text.is_empty() => Ok(()),
            Some(words) => {
                let short = self.short(text);
                let text = short.as_ref().map_or(text, Short::text);
                words.tokens(text, |id, _| ids.push(id), |word| self.encode_whole(word))
            }
            None => {
                let encoding = self.inner.plain.encode_fast(text, false).map_err(cannot_encode)?;
                ids.extend_from_slice(encoding.get_ids());
                Ok(())
            }
        }
    }

    /// Token ids of a plain text, each with the bytes of `text` it stands for.
    ///
    /// Tokens that are parts of one character all have that character's range.
    pub fn encode_with_offsets(&self, text: &str) -> Result<Vec<(u32, Range<usize>)>> {
        let Some(words) = &self.inner.words else { return self.encode_whole(text) };
        let short = self.short(text);
        let text = short.as_ref().map_or(text, Short::text);
        let whole = |range: Range<usize>| short.as_ref().map_or(range.clone(), |short| short.whole(&range));
        let mut tokens = Vec::new();
        words.tokens(text, |id, range| tokens.push((id, whole(range))), |word| self.encode_whole(word))?;
        Ok(tokens)
    }

    /// The text without what white space this tokenizer leaves out, if there is any.
    fn short(&self, text: &str) -> Option<Short> {
        self.inner.single_spaced.then(|| Short::of(text)).flatten()
    }

    /// Ids and offsets by the tokenizer itself, without memory.
    fn encode_whole(&self, text: &str) -> Result<Vec<(u32, Range<usize>)>> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let encoding = self.inner.plain.encode(text, false).map_err(cannot_encode)?;
        let offsets = encoding.get_offsets().iter().map(|&(start, end)| start..end);
        Ok(encoding.get_ids().iter().copied().zip(offsets).collect())
    }

    /// The id of the control token with exactly this text.
    pub fn control(&self, text: &str) -> Option<u32> {
        self.inner.controls.get(text).map(|control| control.id)
    }

    /// Whether `id` is a control token.
    pub fn is_control(&self, id: u32) -> bool {
        self.inner.control_ids.binary_search(&id).is_ok()
    }

    /// What is wrong with a prompt that begins with these control tokens, and then with a text: Hugging Face
    /// gives other ids for it.
    pub fn check_beginning(&self, controls: &[u32]) -> std::result::Result<(), String> {
        let Beginning { added, spaced } = &self.inner.beginning;
        if !controls.starts_with(added) {
            let text = |id| {
                self.inner
                    .controls
                    .iter()
                    .find(|(_, control)| control.id == id)
                    .map(|(text, _)| text.as_str())
            };
            let added = listed(added.iter().filter_map(|&id| text(id)));
            return Err(format!("must begin with {added}, which the tokenizer puts before every text"));
        }
        if *spaced && controls.is_empty() {
            return Err(
                "must begin with a control token: before a text that begins a prompt, and no other, the \
                        tokenizer puts a space (prepend_scheme \"first\")"
                    .to_owned(),
            );
        }
        Ok(())
    }

    /// The first control token in a template's literal text; the longest of those that begin there.
    ///
    /// `Invalid` if that token is defined to swallow white space around it, which a template
    /// cannot express.
    pub fn find_control(&self, text: &str) -> Result<Option<FoundControl>> {
        let mut best: Option<(Range<usize>, &str, Control)> = None;
        for (content, &control) in &self.inner.controls {
            let Some(start) = text.find(content.as_str()).filter(|_| !content.is_empty()) else { continue };
            let better = best.as_ref().is_none_or(|(range, ..)| {
                start < range.start || (start == range.start && content.len() > range.len())
            });
            if better {
                best = Some((start..start + content.len(), content, control));
            }
        }
        match best {
            None => Ok(None),
            Some((_, content, control)) if control.contextual => Err(Error::invalid(
                "template",
                format!(
                    "the tokenizer defines {content:?} with lstrip, rstrip or single_word, which is not supported"
                ),
            )),
            Some((range, _, control)) => Ok(Some(FoundControl { range, id: control.id })),
        }
    }

    /// One past the largest token id.
    pub fn vocab_size(&self) -> usize {
        self.inner.vocab_size
    }

    /// An upper bound of the bytes of text one token stands for, in bytes.
    pub fn longest_token_bytes(&self) -> usize {
        self.inner.longest_token_bytes
    }

    /// The text of `ids`; control tokens and unknown ids have none, broken UTF-8 becomes U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let plain: Vec<u32> = ids.iter().copied().filter(|&id| !self.is_control(id)).collect();
        self.inner
            .plain
            .decode(&plain, false)
            .map_err(|cause| Error::internal("the tokenizer cannot decode").with_cause(cause))
    }

    /// A decoder that takes one token at a time.
    pub fn decode_stream(&self) -> DecodeStream {
        DecodeStream { tokenizer: self.clone(), ids: Vec::new(), window: 0, sent: 0, started: false }
    }
}

/// The ids that a tokenizer's post-processor puts before a text.
fn added_before(whole: &tokenizers::Tokenizer) -> std::result::Result<Vec<u32>, String> {
    let ids = |added| {
        whole.encode("a", added).map(|found| found.get_ids().to_vec()).map_err(|error| error.to_string())
    };
    let (bare, all) = (ids(false)?, ids(true)?);
    if bare.is_empty() {
        return Ok(Vec::new());
    }
    let place = all.windows(bare.len()).position(|ids| ids == bare);
    let place = place.ok_or("post_processor: it changes the tokens of a text, which is not supported")?;
    Ok(all[..place].to_vec())
}

/// Makes a tokenizer that puts a space before what begins a text, and before nothing else, put none; returns
/// whether it was one.
fn take_first_space(plain: &mut tokenizers::Tokenizer) -> bool {
    let Some(PreTokenizerWrapper::Metaspace(metaspace)) = plain.get_pre_tokenizer() else { return false };
    if metaspace.get_prepend_scheme() != PrependScheme::First {
        return false;
    }
    let mut metaspace = metaspace.clone();
    metaspace.set_prepend_scheme(PrependScheme::Never);
    plain.with_pre_tokenizer(Some(PreTokenizerWrapper::Metaspace(metaspace)));
    true
}

fn cannot_encode(cause: tokenizers::Error) -> Error {
    Error::internal("the tokenizer cannot encode a text").with_cause(cause)
}

/// Token by token to text, never half a character; white space before the first
/// visible character is left out.
#[derive(Debug)]
pub struct DecodeStream {
    tokenizer: Tokenizer,
    ids: Vec<u32>,
    /// Tokens before it no longer influence the text to come.
    window: usize,
    /// Tokens before it have been sent.
    sent: usize,
    started: bool,
}

impl DecodeStream {
    /// Takes a token; returns the text that is now complete, if any.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        self.ids.push(id);
        self.advance(false)
    }

    /// The text still held back; an unfinished character becomes U+FFFD.
    pub fn finish(mut self) -> Result<Option<String>> {
        self.advance(true)
    }

    fn advance(&mut self, last: bool) -> Result<Option<String>> {
        // Decoding a window that begins one step back keeps what a decoder does
        // at the start of a text (dropping a space) out of the middle.
        let before = self.tokenizer.decode(&self.ids[self.window..self.sent])?;
        let now = self.tokenizer.decode(&self.ids[self.window..])?;
        let unfinished = now.ends_with(char::REPLACEMENT_CHARACTER) && !last;
        let Some(fresh) = now.strip_prefix(before.as_str()).filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        if unfinished {
            return Ok(None);
        }
        let fresh = if self.started { fresh } else { fresh.trim_start() };
        self.started |= !fresh.is_empty();
        let fresh = (!fresh.is_empty()).then(|| fresh.to_owned());
        self.window = self.sent;
        self.sent = self.ids.len();
        Ok(fresh)
    }
}

#[cfg(test)]
mod tests;

//! Token by token through a grounded reason.

use std::sync::Arc;

use super::{Facts, Grounding, Says};

/// Watches one reason as it is decoded: see [`Guard::take`].
#[derive(Clone, Debug)]
pub struct Guard {
    rule: Arc<Grounding>,
    facts: Facts,
    /// The reported grade's place in the profile.
    grade: usize,
    /// Sections opened.
    opened: usize,
    /// The words that the open section lists, by place.
    listed: Vec<bool>,
    /// Whether the open section says what it must.
    said: bool,
    /// What may be written here, the rule's own choice first; all agree on `written` tokens.
    open: Vec<(Piece, Vec<u32>)>,
    written: usize,
}

/// A piece of a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    /// The next section's name, or the end.
    Next,
    /// A word of the query, by place.
    Word(usize),
    /// All that a section says, at once.
    Whole,
}

impl Guard {
    /// A reason that begins: nothing is written after the grade of that place in the profile.
    pub fn new(rule: Arc<Grounding>, facts: Facts, grade: usize) -> Self {
        let listed = vec![false; facts.asked.len()];
        let mut guard =
            Self { rule, facts, grade, opened: 0, listed, said: true, open: Vec::new(), written: 0 };
        guard.open = guard.choices();
        guard
    }

    /// The token that is written when the model's is `token`: that one if the reason stays true
    /// and well formed, else the rule's own.
    ///
    /// The rule's own finishes a word that is begun; else it is the first word of the query that
    /// the list may have and does not; else the list's end.
    pub fn take(&mut self, token: u32) -> u32 {
        let at = self.written;
        if !self.open.iter().any(|(_, tokens)| tokens.get(at) == Some(&token))
            && let Some((piece, _)) = self.open.iter().find(|(_, tokens)| tokens.len() == at)
        {
            // The word was whole though a longer one begins like it.
            self.complete(*piece);
            return self.take(token);
        }
        let fits = self.open.iter().any(|(_, tokens)| tokens.get(at) == Some(&token));
        let own = || self.open.iter().find_map(|(_, tokens)| tokens.get(at).copied());
        let token = if fits { token } else { own().unwrap_or(self.rule.stop) };
        self.open.retain(|(_, tokens)| tokens.get(at) == Some(&token));
        self.written += 1;
        if let [(piece, tokens)] = &self.open[..]
            && tokens.len() == self.written
        {
            self.complete(*piece);
        }
        token
    }

    fn complete(&mut self, piece: Piece) {
        match piece {
            Piece::Next => {
                self.opened += 1;
                self.listed.fill(false);
                self.said = false;
            }
            Piece::Word(place) => {
                self.listed[place] = true;
                self.said = true;
            }
            Piece::Whole => self.said = true,
        }
        self.written = 0;
        self.open = self.choices();
    }

    /// What may come next: words that are true here and not yet listed, in the query's order; the
    /// next section once this one says something.
    fn choices(&self) -> Vec<(Piece, Vec<u32>)> {
        let mut choices = Vec::new();
        if let Some(section) = self.opened.checked_sub(1).and_then(|index| self.rule.sections.get(index)) {
            if section.says != Says::Grade {
                choices.extend(self.words(section.says));
            }
            if choices.is_empty() && !self.said {
                let grade = self.rule.grades.get(self.grade).filter(|_| section.says == Says::Grade);
                choices.push((Piece::Whole, grade.unwrap_or(&self.rule.none).clone()));
            }
        }
        if self.said {
            let next = self.rule.sections.get(self.opened);
            choices.push((Piece::Next, next.map_or(vec![self.rule.stop], |next| next.opening.clone())));
        }
        choices
    }

    fn words(&self, says: Says) -> impl Iterator<Item = (Piece, Vec<u32>)> {
        let (found, missing) = (says != Says::Missing, says != Says::Found);
        let places =
            self.facts.asked.iter().enumerate().filter(move |(place, word)| {
                !self.listed[*place] && if word.found { found } else { missing }
            });
        places.map(|(place, word)| (Piece::Word(place), word.tokens.clone()))
    }
}

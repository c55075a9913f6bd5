//! Rust text without what is no code: comments, strings, tests.

/// Code alone: comments and the contents of strings and characters become blanks;
/// line breaks stay, so that line numbers do.
pub(crate) fn code(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = skip(&chars, at);
        if end > at {
            out.extend(chars[at..end].iter().map(|&c| if c == '\n' { '\n' } else { ' ' }));
            at = end;
        } else {
            out.push(chars[at]);
            at += 1;
        }
    }
    out
}

/// The end of the comment, string or character that starts at `at`; `at` if none does.
fn skip(chars: &[char], at: usize) -> usize {
    let next = |offset: usize| chars.get(at + offset).copied().unwrap_or('\0');
    let before = at.checked_sub(1).and_then(|at| chars.get(at)).copied().unwrap_or(' ');
    match chars[at] {
        '/' if next(1) == '/' => find(chars, at, &['\n']),
        '/' if next(1) == '*' => find(chars, at + 2, &['*', '/']) + 2,
        '"' => string_end(chars, at),
        'r' if !is_word(before) || before == 'b' => raw_end(chars, at),
        '\'' if next(1) == '\\' => find(chars, at + 3, &['\'']) + 1,
        '\'' if next(2) == '\'' => at + 3,
        _ => at,
    }
    .min(chars.len())
}

fn string_end(chars: &[char], at: usize) -> usize {
    let mut end = at + 1;
    while end < chars.len() && chars[end] != '"' {
        end += if chars[end] == '\\' { 2 } else { 1 };
    }
    end + 1
}

fn raw_end(chars: &[char], at: usize) -> usize {
    let hashes = chars[at + 1..].iter().take_while(|&&c| c == '#').count();
    if chars.get(at + 1 + hashes) != Some(&'"') {
        return at;
    }
    let close: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    find(chars, at + 2 + hashes, &close) + close.len()
}

fn find(chars: &[char], from: usize, what: &[char]) -> usize {
    (from..chars.len()).find(|&at| chars[at..].starts_with(what)).unwrap_or(chars.len())
}

pub(crate) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// `code` without the modules behind `#[cfg(test)]`; line numbers stay.
pub(crate) fn without_tests(code: &str) -> String {
    let mut out = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(from) = rest.find("#[cfg(test)]") {
        out.push_str(&rest[..from]);
        let tests = &rest[from..];
        let end = block_end(tests);
        out.extend(tests[..end].chars().filter(|&c| c == '\n'));
        rest = &tests[end..];
    }
    out.push_str(rest);
    out
}

/// The end of the first item of `code`: of its block, or its semicolon.
pub(crate) fn block_end(code: &str) -> usize {
    let mut depth = 0usize;
    for (at, c) in code.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth <= 1 => return at + 1,
            '}' => depth -= 1,
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

/// Where `word` stands by itself in `code`: byte offsets.
pub(crate) fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        !code[..at].chars().next_back().is_some_and(is_word)
            && !code[at + word.len()..].chars().next().is_some_and(is_word)
    })
}

/// The line of a byte offset, from 1.
pub(crate) fn line(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

#[test]
fn comments_strings_and_characters_are_no_code() {
    let bare =
        code("let a = \"unsafe \\\" b\"; // unsafe\n/* unsafe */ let c = '\"'; let d = r#\"unsafe\"#;");
    assert_eq!(words(&bare, "unsafe").count(), 0, "{bare}");
    assert_eq!(words(&bare, "let").count(), 3, "{bare}");
    assert_eq!(line(&bare, bare.find("let c").expect("code")), 2);
    let lifetimes = code("fn f<'a>(x: &'a str) -> &'a str { x.unwrap() }");
    assert!(lifetimes.contains("x.unwrap()"), "{lifetimes}");
    assert!(!code("let c = '\\''; // x.unwrap()").contains("unwrap"));
}

#[test]
fn test_modules_are_left_out() {
    let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() { c.unwrap() }\n}\nfn d() {}\n";
    let bare = without_tests(&code(text));
    assert!(bare.contains("fn a") && bare.contains("fn d") && !bare.contains("unwrap"), "{bare}");
    assert_eq!(line(&bare, bare.find("fn d").expect("code")), 6);
    assert_eq!(without_tests("#[cfg(test)]\nmod tests;\nfn e() {}").trim(), "fn e() {}");
}

//! The form of a scenario file.

/// One argument: `value`, `key=value` or `key=(a,b)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Argument {
    /// The whole word of a plain value, else what stands before the `=`.
    pub key: String,
    /// What stands behind the `=`.
    pub values: Vec<String>,
}

/// One command of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The line where it starts, from 1.
    pub line: usize,
    /// Its first word.
    pub name: String,
    /// The words behind it.
    pub arguments: Vec<Argument>,
    /// The lines up to `----`.
    pub input: String,
    /// The lines after it.
    pub expected: String,
    /// The file from the end of the last command's text to this one's `----`.
    pub before: String,
}

/// Why a file is not a scenario.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages name the fields")]
pub enum ParseError {
    #[error("line {line}: the command has no ---- behind it")]
    NoSeparator { line: usize },
    #[error("line {line}: a list is not closed")]
    OpenList { line: usize },
    #[error("line {line}: the expected text between doubled ---- has no end")]
    OpenText { line: usize },
}

const SEPARATOR: &str = "----";

/// Reads a whole file.
pub fn parse(text: &str) -> Result<Vec<Command>, ParseError> {
    let mut lines = text.lines().enumerate().peekable();
    let mut commands = Vec::new();
    let mut before = String::new();
    while let Some((at, line)) = lines.next() {
        push_line(&mut before, line);
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let first = at + 1;
        let mut words = line.trim_end().to_owned();
        while words.ends_with('\\') {
            words.pop();
            let Some((_, more)) = lines.next() else { break };
            push_line(&mut before, more);
            words.push_str(more.trim());
        }
        let mut input = String::new();
        loop {
            let (_, line) = lines
                .next()
                .ok_or(ParseError::NoSeparator { line: first })?;
            if line.trim_end() == SEPARATOR {
                break;
            }
            push_line(&mut before, line);
            push_line(&mut input, line);
        }
        let expected = take_expected(&mut lines, first)?;
        let mut arguments = split(&words, first)?;
        let name = arguments.remove(0).key;
        commands.push(Command {
            line: first,
            name,
            arguments,
            input,
            expected,
            before: std::mem::take(&mut before),
        });
    }
    Ok(commands)
}

fn push_line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

type Lines<'a> = std::iter::Peekable<std::iter::Enumerate<std::str::Lines<'a>>>;

/// Up to a blank line; or, when it opens with a second `----`, to a doubled one.
fn take_expected(lines: &mut Lines<'_>, line: usize) -> Result<String, ParseError> {
    let mut expected = String::new();
    let is_separator = |line: &str| line.trim_end() == SEPARATOR;
    if lines.next_if(|(_, line)| is_separator(line)).is_some() {
        loop {
            let (_, text) = lines.next().ok_or(ParseError::OpenText { line })?;
            if is_separator(text) && lines.next_if(|(_, next)| is_separator(next)).is_some() {
                return Ok(expected);
            }
            push_line(&mut expected, text);
        }
    }
    for (_, text) in lines.by_ref() {
        if text.trim().is_empty() {
            break;
        }
        push_line(&mut expected, text);
    }
    Ok(expected)
}

/// Splits at spaces that are not within a list.
fn split(line: &str, number: usize) -> Result<Vec<Argument>, ParseError> {
    let mut words = vec![String::new()];
    let mut is_in_list = false;
    for character in line.chars() {
        match character {
            '(' => is_in_list = true,
            ')' => is_in_list = false,
            _ => {}
        }
        if character.is_whitespace() && !is_in_list {
            words.push(String::new());
        } else {
            let word = words.last_mut().expect("there is always one");
            word.push(character);
        }
    }
    if is_in_list {
        return Err(ParseError::OpenList { line: number });
    }
    let words = words.iter().filter(|word| !word.is_empty());
    Ok(words.map(|word| argument(word)).collect())
}

fn argument(word: &str) -> Argument {
    let (key, value) = match word.split_once('=') {
        Some((key, value)) if !key.is_empty() => (key, Some(value)),
        Some(_) | None => (word, None),
    };
    let values = value.map(|value| {
        let list = value.strip_prefix('(').and_then(|v| v.strip_suffix(')'));
        let items = list.unwrap_or(value).split(',').map(str::trim);
        items
            .filter(|item| !item.is_empty())
            .map(str::to_owned)
            .collect()
    });
    Argument {
        key: key.to_owned(),
        values: values.unwrap_or_default(),
    }
}

impl Command {
    /// The plain values, in order.
    pub fn plain(&self) -> impl Iterator<Item = &str> {
        let plain = self.arguments.iter().filter(|a| a.values.is_empty());
        plain.map(|a| a.key.as_str())
    }

    /// The values of `key=…`.
    pub fn values(&self, key: &str) -> impl Iterator<Item = &str> {
        let with_key = move |a: &&Argument| a.key == key;
        let found = self.arguments.iter().filter(with_key);
        found.flat_map(|a| a.values.iter().map(String::as_str))
    }

    /// Whether a word is there.
    pub fn has(&self, word: &str) -> bool {
        self.plain().any(|plain| plain == word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_lines_arguments_input_and_text() {
        let text = "# about\n\nadd-nodes 3 voters=(1, 2,3) \\\n  index=5\n----\nok\n\n\
                    propose-conf-change 1 v1=true\nv1 l2\n----\n----\na\n\nb\n----\n----\n\nstabilize\n----\n";
        let commands = parse(text).expect("valid");
        let first = &commands[0];
        assert_eq!((first.line, first.name.as_str()), (3, "add-nodes"));
        assert_eq!(first.values("voters").collect::<Vec<_>>(), ["1", "2", "3"]);
        assert_eq!(first.values("index").collect::<Vec<_>>(), ["5"]);
        assert_eq!(first.expected, "ok\n");
        let second = &commands[1];
        assert_eq!((second.line, second.input.as_str()), (8, "v1 l2\n"));
        assert_eq!(second.expected, "a\n\nb\n");
        assert_eq!((commands[2].line, commands.len()), (18, 3));
    }

    #[test]
    fn what_is_no_scenario_is_refused_with_its_line() {
        let no_end = parse("\ncampaign 1\n");
        assert_eq!(no_end, Err(ParseError::NoSeparator { line: 2 }));
        let open = parse("add-nodes 1 voters=(1\n----\n");
        assert_eq!(open, Err(ParseError::OpenList { line: 1 }));
    }
}

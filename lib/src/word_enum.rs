//! Enums whose values are words of the command line, as in `--missing fail|null|skip`.

/// Gives each variant of an enum its word: `word_enum!(Missing { Fail = "fail", Null = "null" });`.
///
/// The enum gets `ALL`, its values in the order in which they are shown; `name`, the word; `Display`;
/// and [`argh::FromArgValue`], whose error lists the words. A variant without a word does not
/// compile. An option of such a type has the words as its `arg_name` (`fail|null|skip`): `--help`,
/// the completions of the shells and a test of every tool read them there.
#[macro_export]
macro_rules! word_enum {
    ($enum:ident { $($variant:ident = $word:literal),+ $(,)? }) => {
        // Where the enum is private, so are these.
        #[allow(unreachable_pub)]
        impl $enum {
            /// All values, in the order in which they are shown.
            pub const ALL: [$enum; [$($word),+].len()] = [$($enum::$variant),+];

            /// The word for this value on a command line.
            pub const fn name(self) -> &'static str {
                match self {
                    $($enum::$variant => $word),+
                }
            }
        }

        impl ::std::fmt::Display for $enum {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.pad(self.name())
            }
        }

        impl ::argh::FromArgValue for $enum {
            fn from_arg_value(word: &str) -> ::std::result::Result<$enum, ::std::string::String> {
                let named = $enum::ALL.into_iter().find(|value| value.name() == word);
                named.ok_or_else(|| $crate::word_enum::must_be(&$enum::ALL.map($enum::name)))
            }
        }
    };
}

/// The error about a word that is none of these: `must be fail, null or skip`.
pub fn must_be(words: &[&str]) -> String {
    match words {
        [first @ .., before, last] => {
            let first: String = first.iter().flat_map(|word| [word, ", "]).collect();
            format!("must be {first}{before} or {last}")
        }
        _ => format!("must be {}", words.concat()),
    }
}

#[cfg(test)]
mod tests {
    use super::must_be;
    use argh::FromArgValue;

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Answer {
        Yes,
        No,
        NotNow,
    }

    word_enum!(Answer { Yes = "yes", No = "no", NotNow = "not-now" });

    #[test]
    fn every_value_is_parsed_from_its_name() {
        assert_eq!(Answer::ALL, [Answer::Yes, Answer::No, Answer::NotNow]);
        for value in Answer::ALL {
            assert_eq!(Answer::from_arg_value(value.name()), Ok(value));
        }
        assert_eq!(format!("{:>8}", Answer::NotNow), " not-now");
    }

    #[test]
    fn an_unknown_word_is_told_the_known_ones() {
        let wrong = Answer::from_arg_value("Yes");
        assert_eq!(wrong, Err("must be yes, no or not-now".into()));
        assert_eq!(must_be(&["a", "b"]), "must be a or b");
        assert_eq!(must_be(&["a"]), "must be a");
    }
}

//! A template's source made safe to run, and its operators Python's.
//!
//! A chat template is a program from a stranger. minijinja counts the instructions it runs, but one
//! instruction can double a text, and what a template does to texts with operators goes past every
//! hook. So operators become calls of the functions in [`budget`](super::budget), which count what
//! is made, and which join texts as Python does:
//!
//! | in the source | becomes |
//! |---|---|
//! | `a ~ b`, `a + b`, `a * b` | `__mlxgk_join(a , b)`, `__mlxgk_add(a , b)`, `__mlxgk_multiply(a , b)` |
//! | `{% for x in items %}` | `{% for x in __mlxgk_items(items) %}` |
//! | `{% set ns.x = value %}` | `{% set ns.x = __mlxgk_keep(value) %}` |
//! | `a\|filter` | `a\|__mlxgk_seen\|filter` |
//! | `a == b`, `a in b`, `a[2:]` | `__mlxgk_seen(a) == __mlxgk_seen(b)`, `a in __mlxgk_seen(b)`, `__mlxgk_seen(a)[2:]` |
//! | `a[::-1]` | `__mlxgk_slice(a,none,none,-1)` |
//! | a long text | the same with `{{ __mlxgk_count(length) }}` in its middle |
//!
//! No line is added, so errors name the lines of the source. Before anything is parsed the source is
//! checked for nesting that would overflow the parser's stack.

use minijinja::machinery::{Span, Token, ast, parse, tokenize};
use minijinja::syntax::SyntaxConfig;

/// What the functions' names begin with; a source that has it is refused.
const PREFIX: &str = "__mlxgk";
/// The longest source in bytes; published ones have up to 30 KB.
const LONGEST: usize = 256 << 10;
/// How deep brackets and blocks may be nested.
const DEEPEST: usize = 48;
/// Tokens of one tag.
const LONGEST_TAG: usize = 1500;
/// Branches of one kind (`elif`), which the parser nests.
const MOST_BRANCHES: usize = 100;
/// Texts up to here are not counted: the instructions that write them are.
const SHORT: usize = 64;

/// The source as it is run; an error says what is beyond the limits, with its line.
pub(super) fn rewrite(source: &str, syntax: &SyntaxConfig) -> Result<String, String> {
    if source.len() > LONGEST {
        return Err(format!("it has more than {LONGEST} bytes"));
    }
    if source.contains(PREFIX) {
        return Err(format!("names must not begin with `{PREFIX}`"));
    }
    let tokens = tokens(source, syntax)?;
    // A syntax error is reported when the template is compiled.
    let Ok(template) = parse(source, "", syntax.clone()) else { return Ok(source.to_owned()) };
    let mut edits = Edits { source, tokens: &tokens, list: Vec::new() };
    edits.statement(&template);
    Ok(edits.apply())
}

/// A token as far as it matters here.
struct Lexeme {
    kind: Kind,
    /// Whether it is the first of its tag.
    first: bool,
    start: usize,
    end: usize,
}

#[derive(PartialEq, Eq, Clone, Copy)]
enum Kind {
    Open,
    Close,
    Join,
    Add,
    Multiply,
    In,
    Assign,
    Colon,
    Dot,
    /// What something may be looked up in or be called.
    Operand,
    Other,
}

/// Names after which an expression begins.
const KEYWORDS: [&str; 15] = [
    "if",
    "elif",
    "else",
    "not",
    "and",
    "or",
    "is",
    "for",
    "set",
    "call",
    "filter",
    "with",
    "do",
    "include",
    "recursive",
];

/// The tokens within tags, up to the first that cannot be read.
fn tokens(source: &str, syntax: &SyntaxConfig) -> Result<Vec<Lexeme>, String> {
    let (mut list, mut blocks, mut brackets, mut in_tag, mut branches) = (Vec::new(), 0, 0, 0, 0);
    let (mut first, mut run, mut elses) = (false, 0, 0);
    for token in tokenize(source, false, syntax.clone()) {
        let Ok((token, span)) = token else { break };
        let beyond = |what: &str| Err(format!("line {}: {what}", span.start_line));
        let kind = match &token {
            Token::VariableStart | Token::BlockStart => {
                (in_tag, brackets, run, elses) = (0, 0, 0, 0);
                first = matches!(token, Token::BlockStart);
                continue;
            }
            Token::ParenOpen | Token::BracketOpen | Token::BraceOpen => Kind::Open,
            Token::ParenClose | Token::BracketClose | Token::BraceClose => Kind::Close,
            Token::Tilde => Kind::Join,
            Token::Plus => Kind::Add,
            Token::Mul => Kind::Multiply,
            Token::Assign => Kind::Assign,
            Token::Ident("in") => Kind::In,
            Token::Colon => Kind::Colon,
            Token::Dot => Kind::Dot,
            Token::Ident(word) if !KEYWORDS.contains(word) => Kind::Operand,
            Token::Str(_) | Token::String(_) => Kind::Operand,
            Token::TemplateData(_) | Token::VariableEnd | Token::BlockEnd => continue,
            _ => Kind::Other,
        };
        in_tag += 1;
        brackets += i32::from(kind == Kind::Open) - i32::from(kind == Kind::Close);
        if let (Token::Ident(word), true) = (&token, first) {
            match *word {
                "for" | "if" | "macro" | "call" | "filter" | "with" | "block" | "autoescape" => {
                    blocks += 1;
                }
                "elif" => branches += 1,
                word if word.starts_with("end") && word != "endset" => blocks -= 1,
                _ => {}
            }
        }
        first = false;
        if brackets > DEEPEST as i32 || blocks > DEEPEST as i32 {
            return beyond("it is nested too deep");
        }
        if in_tag > LONGEST_TAG || branches > MOST_BRANCHES {
            return beyond("a tag or a chain of `elif` is too long");
        }
        // What the parser nests without counting.
        elses += usize::from(matches!(token, Token::Ident("else")));
        let unary = matches!(token, Token::Minus | Token::Ident("not"));
        run = if unary { run + 1 } else { 0 };
        if run > DEEPEST || elses > DEEPEST {
            return beyond("too many operators of one kind follow each other");
        }
        list.push(Lexeme {
            kind,
            first: in_tag == 1,
            start: span.start_offset as usize,
            end: span.end_offset as usize,
        });
    }
    Ok(list)
}

/// Texts to put in, and operators to replace.
struct Edits<'s> {
    source: &'s str,
    tokens: &'s [Lexeme],
    /// Where, how much is left out there, and what is put in instead.
    list: Vec<(usize, usize, String)>,
}

impl Edits<'_> {
    fn apply(mut self) -> String {
        // What is put in at one place stays in its order (outer calls begin first), and goes before an
        // operator there.
        self.list.sort_by_key(|(at, len, _)| (*at, *len));
        let (mut text, mut done) = (String::with_capacity(self.source.len() * 2), 0);
        for (at, len, new) in &self.list {
            text.push_str(&self.source[done..*at]);
            // After a word that stands right before a text: `and'a' ~ 'b'`.
            if text.ends_with(is_of_a_name) && new.starts_with(is_of_a_name) {
                text.push(' ');
            }
            text.push_str(new);
            done = at + len;
        }
        text.push_str(&self.source[done..]);
        text
    }

    fn call(&mut self, name: &str, start: usize, end: usize) {
        self.list.push((start, 0, format!("{PREFIX}_{name}(")));
        self.list.push((end, 0, ")".to_owned()));
    }

    /// The first token from an offset on.
    fn token(&self, from: usize) -> usize {
        self.tokens.partition_point(|it| it.start < from)
    }

    /// Where an expression ends that begins at `start`: its last token may be followed by brackets
    /// that were opened in it.
    fn end(&self, start: usize, end: usize) -> usize {
        let within = self.token(start)..self.token(end);
        let open: i32 = self.tokens[within.clone()].iter().map(bracket).sum();
        let closing = self.tokens[within.end..].iter().take(usize::try_from(open).unwrap_or(0));
        closing.take_while(|it| it.kind == Kind::Close).last().map_or(end, |it| it.end)
    }

    fn statements(&mut self, list: &[ast::Stmt<'_>]) {
        list.iter().for_each(|it| self.statement(it));
    }

    fn statement(&mut self, it: &ast::Stmt<'_>) {
        use ast::Stmt;
        match it {
            Stmt::Template(it) => self.statements(&it.children),
            Stmt::EmitExpr(it) => self.expression(&it.expr),
            Stmt::EmitRaw(it) => self.raw(it.raw),
            Stmt::ForLoop(it) => {
                self.items(&it.iter, it.target.span());
                self.expression(&it.iter);
                it.filter_expr.iter().for_each(|it| self.expression(it));
                self.statements(&it.body);
                self.statements(&it.else_body);
            }
            Stmt::IfCond(it) => {
                self.expression(&it.expr);
                self.statements(&it.true_body);
                self.statements(&it.false_body);
            }
            Stmt::WithBlock(it) => {
                it.assignments.iter().for_each(|(_, value)| self.expression(value));
                self.statements(&it.body);
            }
            Stmt::Set(it) => {
                if matches!(it.target, ast::Expr::GetAttr(_)) {
                    self.kept(&it.expr, it.target.span());
                }
                self.expression(&it.expr);
            }
            Stmt::SetBlock(it) => {
                it.filter.iter().for_each(|it| self.expression(it));
                self.statements(&it.body);
            }
            Stmt::AutoEscape(it) => self.statements(&it.body),
            Stmt::FilterBlock(it) => {
                self.expression(&it.filter);
                self.statements(&it.body);
            }
            Stmt::Block(it) => self.statements(&it.body),
            Stmt::Macro(it) => {
                it.defaults.iter().for_each(|it| self.expression(it));
                self.statements(&it.body);
            }
            Stmt::CallBlock(it) => {
                self.arguments(&it.call.args);
                self.statements(&it.macro_decl.body);
            }
            Stmt::Do(it) => self.arguments(&it.call.args),
            Stmt::Import(_) | Stmt::FromImport(_) | Stmt::Extends(_) | Stmt::Include(_) => {}
            Stmt::Continue(_) | Stmt::Break(_) => {}
        }
    }

    fn arguments(&mut self, args: &[ast::CallArg<'_>]) {
        use ast::CallArg;
        for arg in args {
            let (CallArg::Pos(it)
            | CallArg::Kwarg(_, it)
            | CallArg::PosSplat(it)
            | CallArg::KwargSplat(it)) = arg;
            self.expression(it);
        }
    }

    fn expression(&mut self, it: &ast::Expr<'_>) {
        use ast::Expr;
        match it {
            Expr::Var(_) | Expr::Const(_) => {}
            Expr::Slice(it) => {
                if it.step.is_some() {
                    self.slice(it.span().end_offset as usize);
                } else {
                    self.seen(&it.expr);
                }
                self.expression(&it.expr);
                [&it.start, &it.stop, &it.step].into_iter().flatten().for_each(|it| {
                    self.expression(it);
                });
            }
            Expr::UnaryOp(it) => self.expression(&it.expr),
            Expr::BinOp(binary) => {
                self.operator(binary, it.span());
                self.compared(binary);
                self.expression(&binary.left);
                self.expression(&binary.right);
            }
            Expr::Compare(it) => {
                for side in std::iter::once(&it.expr).chain(it.ops.iter().map(|it| &it.expr)) {
                    self.seen(side);
                    self.expression(side);
                }
            }
            Expr::IfExpr(it) => {
                self.expression(&it.test_expr);
                self.expression(&it.true_expr);
                it.false_expr.iter().for_each(|it| self.expression(it));
            }
            Expr::Filter(filter) => {
                if let Some(operand) = &filter.expr {
                    // The span begins at the filter's name.
                    let name = it.span().start_offset as usize;
                    self.list.push((name, 0, format!("{PREFIX}_seen|")));
                    self.expression(operand);
                }
                self.arguments(&filter.args);
            }
            Expr::Test(it) => {
                // Others look at the kind of a value alone.
                if !it.args.is_empty() || matches!(it.name, "lower" | "upper") {
                    self.seen(&it.expr);
                }
                for arg in &it.args {
                    if let ast::CallArg::Pos(arg) = arg {
                        self.seen(arg);
                    }
                }
                self.expression(&it.expr);
                self.arguments(&it.args);
            }
            Expr::GetAttr(it) => self.expression(&it.expr),
            Expr::GetItem(it) => {
                if !is_text(&it.subscript_expr) {
                    self.seen(&it.expr);
                }
                self.expression(&it.expr);
                self.expression(&it.subscript_expr);
            }
            Expr::Call(it) => {
                self.expression(&it.expr);
                self.arguments(&it.args);
            }
            Expr::List(it) => it.items.iter().for_each(|it| self.expression(it)),
            Expr::Tuple(it) => it.items.iter().for_each(|it| self.expression(it)),
            Expr::Map(it) => {
                it.keys.iter().for_each(|it| self.seen(it));
                it.keys.iter().chain(&it.values).for_each(|it| self.expression(it));
            }
        }
    }

    fn operator(&mut self, it: &ast::BinOp<'_>, span: Span) {
        let (name, kind) = match it.op {
            ast::BinOpKind::Concat => ("join", Kind::Join),
            ast::BinOpKind::Add => ("add", Kind::Add),
            ast::BinOpKind::Mul => ("multiply", Kind::Multiply),
            _ => return,
        };
        // Only brackets of the left side stand between it and the operator.
        let behind = self.token(it.left.span().end_offset as usize);
        let operator = self.tokens[behind..].iter().find(|it| it.kind != Kind::Close);
        let Some(operator) = operator.filter(|it| it.kind == kind) else { return };
        self.list.push((operator.start, operator.end - operator.start, ",".to_owned()));
        self.call(name, span.start_offset as usize, span.end_offset as usize);
    }

    /// Makes a slice with a step, of which this is the end, a call: minijinja counts backwards otherwise
    /// than Python.
    fn slice(&mut self, end: usize) {
        let close = self.token(end).saturating_sub(1);
        let Some(open) = self.opening(close) else { return };
        let Some(first) = self.operand(open) else { return };
        let (mut depth, mut empty) = (0, true);
        let mut edits = vec![(self.tokens[first].start, 0, format!("{PREFIX}_slice("))];
        for it in &self.tokens[open..=close] {
            depth += bracket(it);
            let new = match (depth, it.kind) {
                (1, Kind::Colon) if empty => "none,",
                (1, Kind::Open | Kind::Colon) => ",",
                (0, _) => ")",
                _ => {
                    empty = false;
                    continue;
                }
            };
            empty = true;
            edits.push((it.start, it.end - it.start, new.to_owned()));
        }
        self.list.append(&mut edits);
    }

    /// The bracket that the one at `close` belongs to.
    fn opening(&self, close: usize) -> Option<usize> {
        let mut depth = 0;
        (0..=close).rev().find(|&at| {
            depth += bracket(&self.tokens[at]);
            depth == 0
        })
    }

    /// The first token of what the bracket at `open` looks up in.
    fn operand(&self, open: usize) -> Option<usize> {
        let mut at = open.checked_sub(1)?;
        loop {
            let before = |at: usize| (!self.tokens[at].first).then(|| self.tokens[at - 1].kind);
            if self.tokens[at].kind == Kind::Close {
                at = self.opening(at)?;
                // Brackets of a call or of another lookup.
                if !matches!(before(at), Some(Kind::Operand | Kind::Close)) {
                    return Some(at);
                }
                at -= 1;
            } else if before(at) == Some(Kind::Dot) {
                at = at.checked_sub(2)?;
            } else {
                return Some(at);
            }
        }
    }

    /// What a comparison looks at. One with a text of the template takes no longer than that is.
    fn compared(&mut self, it: &ast::BinOp<'_>) {
        use ast::BinOpKind::{Eq, Gt, Gte, In, Lt, Lte, Ne};
        match it.op {
            In => self.seen(&it.right),
            Eq | Ne | Lt | Lte | Gt | Gte if ![&it.left, &it.right].into_iter().any(is_text) => {
                self.seen(&it.left);
                self.seen(&it.right);
            }
            _ => {}
        }
    }

    /// Counts what an operation looks at, where that is a variable or a part of one; whatever else a
    /// template makes has been counted by then.
    fn seen(&mut self, it: &ast::Expr<'_>) {
        let Some(start) = beginning(it) else { return };
        let end = it.span().end_offset as usize;
        let within = &self.tokens[self.token(start)..self.token(end)];
        if within.iter().map(bracket).sum::<i32>() == 0 {
            self.call("seen", start, end);
        }
    }

    /// What a loop goes through.
    fn items(&mut self, iter: &ast::Expr<'_>, target: Span) {
        let behind = self.token(target.end_offset as usize);
        let keyword = self.tokens[behind..].iter().position(|it| it.kind == Kind::In);
        self.wrap("items", keyword.map(|it| behind + it + 1), iter);
    }

    /// What a namespace keeps.
    fn kept(&mut self, value: &ast::Expr<'_>, target: Span) {
        let behind = self.token(target.end_offset as usize);
        let sign = self.tokens[behind..].iter().position(|it| it.kind == Kind::Assign);
        self.wrap("keep", sign.map(|it| behind + it + 1), value);
    }

    fn wrap(&mut self, name: &str, first: Option<usize>, it: &ast::Expr<'_>) {
        if let Some(first) = first.and_then(|it| self.tokens.get(it)) {
            let end = self.end(first.start, it.span().end_offset as usize);
            self.call(name, first.start, end);
        }
    }

    /// Counts a text where it is long. The call is put between two characters that no tag trims.
    fn raw(&mut self, raw: &str) {
        if raw.len() <= SHORT {
            return;
        }
        let start = raw.as_ptr() as usize - self.source.as_ptr() as usize;
        let solid = |at: &usize| {
            let [before, after] = [raw[..*at].chars().next_back(), raw[*at..].chars().next()];
            [before, after].iter().all(|it| it.is_some_and(|it| !it.is_whitespace() && it != '{'))
        };
        let places = || (1..raw.len()).filter(|at| raw.is_char_boundary(*at));
        let at = places().find(solid).or_else(|| places().nth(raw.len() / 4));
        if let Some(at) = at {
            let call = format!("{{{{ {PREFIX}_count({}) }}}}", raw.len());
            self.list.push((start + at, 0, call));
        }
    }
}

/// Where a variable and what is looked up in it begin.
fn beginning(it: &ast::Expr<'_>) -> Option<usize> {
    use ast::Expr;
    match it {
        Expr::Var(it) => Some(it.span().start_offset as usize),
        Expr::GetAttr(it) => beginning(&it.expr),
        Expr::GetItem(it) => beginning(&it.expr),
        Expr::Slice(it) => beginning(&it.expr),
        Expr::Call(it) => beginning(&it.expr),
        _ => None,
    }
}

/// Whether an expression is a text that stands in the template.
fn is_text(it: &ast::Expr<'_>) -> bool {
    matches!(it, ast::Expr::Const(it) if it.value.as_str().is_some())
}

/// Whether a name can have this character.
fn is_of_a_name(it: char) -> bool {
    it.is_alphanumeric() || it == '_'
}

fn bracket(it: &Lexeme) -> i32 {
    i32::from(it.kind == Kind::Open) - i32::from(it.kind == Kind::Close)
}

//! The suite on the bundled model.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use mlx_genkit::{
    ComputeDtype, HookPoint, Model, NoHook, Prompt,
    steering::{Injection, Steering, SteeringVectors},
};
use mlxgk_validation::{
    Direction, Measure, Options, Reason, WordLists, guarded, news_prompts, validate,
};

fn model() -> Model {
    Model::bundled(ComputeDtype::Float32).unwrap()
}

fn options(prompts: usize) -> Options {
    let mut options = Options::new(news_prompts().into_iter().take(prompts).collect());
    options.config.max_new_tokens = Some(12);
    options
}

fn steering(alpha: f64) -> Steering {
    let ones = SteeringVectors::new([(HookPoint::ResidPost(2), vec![0.1; 256])]).unwrap();
    Injection::new(ones.random_like(3).unwrap(), alpha).into()
}

#[test]
fn no_strength_is_no_distance() {
    let options = Options { alphas: vec![0.0], controls: false, ..options(3) };
    let report = validate(&model(), &steering(1.0), &options, |_| ()).unwrap();
    let [base, steered] = &report.cells[..] else { panic!("{report}") };
    assert_eq!(base.direction, Direction::Base);
    assert_eq!((base.get(Measure::Kl), base.get(Measure::Differs)), (None, None));
    assert_eq!((steered.get(Measure::Kl), steered.get(Measure::Top1)), (Some(0.0), Some(1.0)));
    let same = [base, steered].map(|it| it.get(Measure::Same));
    assert_eq!(same, [Some(1.0), Some(1.0)]);
    // Their seeds are kept apart.
    assert!(steered.get(Measure::Differs) > Some(0.5), "{report}");
}

#[test]
fn distance_grows_with_strength() {
    let options = Options { alphas: vec![1.0, 8.0], ..options(3) };
    let report = validate(&model(), &steering(1.0), &options, |_| ()).unwrap();
    assert_eq!(report.cells.len(), 7);
    for direction in [Direction::Steered, Direction::Negated, Direction::Random] {
        let kl: Vec<f64> = report
            .cells
            .iter()
            .filter(|it| it.direction == direction)
            .filter_map(|it| it.get(Measure::Kl))
            .collect();
        assert!(kl[0] > 0.0 && kl[1] > 2.0 * kl[0], "{report}");
    }
    let shift = |direction| {
        let cell = report.cells.iter().rfind(|it| it.direction == direction);
        cell.unwrap().get(Measure::Shift)
    };
    assert!(
        shift(Direction::Steered) > Some(1.0) && shift(Direction::Negated) < Some(-1.0),
        "{report}"
    );
}

/// The random control has several directions, a spread, and the progress that was announced.
#[test]
fn random_directions_are_several() {
    let mut options = Options { alphas: vec![4.0, -1.0], random_draws: 3, ..options(2) };
    options.config.max_new_tokens = Some(8);
    options.words = Some(WordLists::from_json(r#"{"glad": ["the"], "sad": []}"#, "glad").unwrap());
    let mut seen = Vec::new();
    let report = validate(&model(), &steering(1.0), &options, |it| seen.push(it)).unwrap();
    let last = seen.last().unwrap();
    assert_eq!(last.done, last.of);
    assert!(seen.windows(2).all(|it| it[0].done < it[1].done));
    for cell in &report.cells {
        let draws = if cell.direction == Direction::Random { 3 } else { 1 };
        assert_eq!((cell.draws, cell.answers), (draws, 2 * draws));
        // Where steering is strongest, answers are drawn twice.
        let repeated = cell.alpha == 4.0 || cell.direction == Direction::Base;
        assert_eq!(cell.get(Measure::Same), repeated.then_some(1.0), "{report}");
        if cell.direction == Direction::Random {
            assert!(cell.spread(Measure::Kl) > Some(0.0), "{report}");
            assert!(report.to_string().contains(" ± "), "{report}");
        } else {
            assert_eq!(cell.spread(Measure::Kl), None);
        }
    }
}

#[test]
fn a_budget_is_measured_as_it_is_kept() {
    let mut options = Options { alphas: vec![40.0], controls: false, ..options(1) };
    options.config.max_new_tokens = Some(6);
    let model = model();
    let distance = |steering: Steering| {
        let report = validate(&model, &steering, &options, |_| ()).unwrap();
        assert_eq!(report.cells[1].get(Measure::Same), Some(1.0), "{report}");
        report.cells[1].get(Measure::Kl).unwrap()
    };
    let (free, bounded) = (distance(steering(1.0)), distance(steering(1.0).budget(0.01)));
    // Not of one step from a common cache, but of whole texts.
    assert!(bounded > 0.0 && bounded < 0.02 && free > 3.0 * bounded, "{free} and {bounded}");
    let same = distance(steering(1.0).budget(1e6));
    assert!((same - free).abs() < 1e-4 * free, "{same} and {free}");
}

#[test]
fn an_answer_equal_to_the_base_is_drawn_once_more() {
    let model = model();
    let prompts: Vec<Prompt> = news_prompts().into_iter().take(2).collect();
    let config = options(2).config;
    let first = guarded(&model, &prompts, &mut NoHook, &config, 7, None).unwrap();
    let again = guarded(&model, &prompts, &mut NoHook, &config, 7, Some(&first)).unwrap();
    for (at, (first, again)) in first.iter().zip(&again).enumerate() {
        assert_eq!(again.resampled, Some(Reason::SameAsBase));
        assert_eq!(again.answer.prompt_index, at);
        assert_ne!(again.answer.tokens, first.answer.tokens);
    }
}

#[test]
fn nothing_to_run_is_an_error() {
    let model = model();
    for (options, words) in [
        (options(0), "at least one prompt"),
        (Options { random_draws: 0, ..options(1) }, "at least one draw"),
        (Options { alphas: vec![], ..options(1) }, "at least one alpha"),
        (Options { alphas: vec![f64::NAN], ..options(1) }, "finite"),
    ] {
        let error = validate(&model, &steering(1.0), &options, |_| ()).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
    assert!(validate(&model, &Steering::default(), &options(1), |_| ()).is_err());
}

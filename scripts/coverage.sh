#!/usr/bin/env bash
# Line coverage of the pure modules, which pyproject.toml lists, by the tests that train nothing:
#
#     bash scripts/coverage.sh
#
# Prints the modules that are not covered whole. Fails when a test does, and below 90% of any module's lines.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"
set_up test

cd "$root"
test_environment
export COVERAGE_FILE=$state/coverage
tests=(
    tests/test_data_*.py
    tests/test_eval_{answers,benchmarks,compare,grader_cases,identity,math_grader,metrics,prm_*,relations}.py
    tests/test_eval_{rulings,sample_files,sandbox_parts,search*,submissions}.py
    tests/test_prm_{batching,critics,formats,judge,labelling,losses*,sums}.py
    tests/test_rl_{config,experience,functional,group,hack_gauge,indicators,loss_terms,losses,moments}.py
    tests/test_rl_{options,plan,preference_pairs,sampler,scoring,shaping,step_values}.py
    # Of files that train as well, what does not.
    tests/test_cli_init.py --deselect tests/test_cli_init.py::test_a_written_config_trains
    tests/test_cli_step_benchmarks.py::test_{the_page_is_self_contained_and_shows_all_pictures,scores_beyond_probabilities_have_no_reliability}
    tests/test_prm_formats_load.py::test_{a_wrong_format_file_is_explained,thresholds_compare_scores_or_their_changes}
    tests/test_plugins.py --deselect tests/test_plugins.py::test_the_pages_commands_run
    --deselect tests/test_plugins.py::test_a_run_whose_reward_raises_ends_in_two_lines
    tests/test_prm_objectives.py::test_{readouts_by_hand,the_linear_value_is_the_scores_slope}
    tests/test_rl_dpo.py::test_{the_loss_is_the_papers_by_definition,ipo_stops_at_its_margin_where_dpo_goes_on}
    tests/test_recipes.py::test_{its_batches_divide_and_its_models_fit,the_reward_model_of_the_small_recipe_fits}
    tests/test_recipes.py::test_{the_estimate_by_hand,a_plan_of_a_run_tells_what_it_lacks,batches_that_do_not_divide_are_told}
    tests/test_rl_dynamic.py --deselect tests/test_rl_dynamic.py::test_a_resumed_run_draws_what_the_uninterrupted_one_does
    tests/test_rl_mismatch.py::test_{weights_of_a_hand_worked_case,off_is_no_weights_and_the_cap_is_counted}
    tests/test_rl_problems.py --deselect tests/test_rl_problems.py::test_the_command_trains_on_both
)
"$python" -m coverage run -m pytest -p no:cacheprovider "${tests[@]}"
"$python" -m coverage report --skip-covered --sort=cover
low=$("$python" -m coverage report | awk '$1 != "TOTAL" && $NF ~ /%$/ && $NF + 0 < 90 { print "below 90%: " $1, $NF }')
[[ -z $low ]] || die "$low"

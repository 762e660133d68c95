"""Tests that are left to `make test-slow`: whole runs, and what one case in `make test` stands for.

Patterns of node ids; a whole function may as well have `@pytest.mark.slow` where it is. What is here takes some 15
minutes of one core, and `make test` is to stay below a quarter of an hour on two.
"""

import re

_KIN = (  # of lora, adalora, vera, oft, houlsby, ia3, loreft, prefix, sparse and gradual, which stay, as a new one does
  'full|head|last_n|bitfit|norm|lora_fa|loha|lokr|dora|hira|pfeiffer|parallel|compacter|miss|p_tuning|p_tuning_v2|prompt'
)
PATTERNS = (
  r'cli/test_adapter\.py::test_the_encoder_alone',
  r'cli/test_adapters?\.py::test_(each_computes_what_its_own_run_does\[unroll|upon_a_run|a_run_from_an_adapter|it_is_evaluated_and_exported)',
  r'cli/test_attribute\.py::test_shares_sum_to_the_difference_of_logits\[decoder\]',
  r'cli/test_export_language\.py::test_(a_template_of_the_run|a_gguf_base)',
  r'cli/test_export_peft\.py::test_the_command',
  r'cli/test_generate\.py::test_a_run_is_scored_by_its_answers',
  r'cli/test_merge\.py::test_the_command',
  r'cli/test_preference_run\.py::test_a_run_that_goes_on',
  r'cli/test_run_folder\.py::test_huge_rates',
  r'cli/test_scratch\.py::test_a_run_is_judged_resumed',
  r'configs/test_configs\.py::test_it_is_read_with_a_method\[(?!classify)',
  r'configs/test_published\.py::test_what_trains_is_what_peft_counts',
  rf'contract/test_methods\.py::test_(scanned_layers_are_the_unrolled_ones|eight_devices_are_one)\[({_KIN})\]',
  r'contract/test_tasks\.py::test_a_run_that_goes_on.*\[(?!classify|tag\]|extract|several)',
  r'contract/test_tasks\.py::test_it_trains_and_is_evaluated\[(?!classify)',
  r'evals/test_report_run\.py::test_answers_before_and_after',
  r'examples/test_optimizer_example\.py::test_the_readme_tells',
  r'generation/test_generator\.py::test_virtual_tokens',
  r'models/test_(relative|small)_encoders\.py::test_(a_method_starts_as_the_base|padding_changes_nothing|packed_documents).*\[.*-(?!lora)',
  rf'models/test_peft_on_decoders\.py::test_a_method_starts_as_the_base\[({_KIN})-gpt2\]',
  r'models/test_peft_on_decoders\.py::test_cached_decoding_with_an_adapter.*\[(?!lora)',
  r'models/test_presets\.py::test_a_preset_(trains_at_its_full_size|has_as_many_parameters)',
  r'models/test_relative_encoders\.py::test_every_other_method_finds_its_place',
  r'optim/test_rules_structured\.py::test_lbfgs_reaches_the_optimum',
  r'parity/test_models_decoders\.py::test_each_setting_matters',
  r'parity/test_models\.py::test_scanned_and_rematerialised_layers',
  r'peft/test_gradual\.py::test_(one_compile_a_stage_and_shape|rates_fall_by_layer)',
  r'peft/test_prompts\.py::test_every_document_of_a_packed_row_sees_the_prefix\[prefix',
  r'peft/test_sparse\.py::test_(movers_are_those|choices_of_a_run)',
  r'resume/test_restart\.py::test_the_end_is_the_same_to_the_bit',
  r'sharding/test_twenty_steps\.py::.*\[full\]',
  r'tasks/test_(language\.py::test_a_run_that_goes_on.*\[(?!sft)|(mask|score)\.py::test_a_run_that_goes_on)',
  r'tasks/test_language\.py::test_it_trains_and_is_evaluated\[(?!sft)',
  r'tasks/test_mask\.py::test_(it_trains_and_is_evaluated|a_task_starts_from_the_run)',
  r'tasks/test_multilabel\.py::test_thresholds_are_those_of_validation',
  r'tasks/test_score\.py::test_it_is_judged_as_it_is_and_then_trained',
  r'train/test_mixout\.py::test_a_run_starts_as_without',
  r'train/test_private\.py::test_(epsilon_is_dp_accountings|a_run_is_private)',
  r'train/test_whole_run\.py::test_averages_are_evaluated_side_by_side',
)


def slow(nodeid: str) -> bool:
  """Whether a test is left to `make test-slow`."""
  return any(re.search(p, nodeid) for p in PATTERNS)

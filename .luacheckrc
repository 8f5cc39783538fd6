std = "lua54"
max_line_length = 120
unused_args = false
files["spec"] = { std = "+busted" }
-- What a policy finds around it (src/sandbox/env.c); and what it does not.
local policy = {
  std = { read_globals = { "allow", "refuse", "amend", "approve", "choose", "set_label", "drain", "activate", "kv_put",
    "kv_rm", "event", "get", "list", "count", "glob", "sorted_pairs", "assert", "error", "ipairs", "math", "next",
    "pairs", "select", "string", "table", "tonumber", "tostring", "type", "utf8" } },
}
files["contrib/policies"] = policy
files["spec/bench/policy.lua"] = policy

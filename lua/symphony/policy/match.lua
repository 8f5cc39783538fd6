--- What policies say of themselves, and which of them an input concerns. Pure.
local errors = require "symphony.errors"
local json = require "symphony.json"
local rules = require "sym.rules"

local M = {}

M.ORDER, M.ORDER_MAX = 50, 100
local SUMMARY_MAX = 200
local HOOKS_MAX, GLOBS_MAX, GLOB_MAX = rules.HOOKS_MAX, rules.GLOBS_MAX, rules.GLOB_MAX

-- What a policy may match by, and what of an input that is.
local FIELDS = { kinds = "kind", keys = "key", actions = "action", roles = "role", names = "name" }

--- The seconds of "every.<duration>"; nil for any other hook.
M.period = rules.period

--- Is there such a hook?
M.is_hook = rules.is_hook

local function fits_any(globs, text)
  for _, glob in ipairs(globs) do
    if rules.glob(glob, text) then return true end
  end
  return false
end

--- Does the policy @about (from check_about) want to hear of @input at @hook?
function M.concerns(about, hook, input)
  local has = false
  for _, name in ipairs(about.hooks) do has = has or name == hook end
  if not has then return false end
  for field, globs in pairs(about.match[hook] or {}) do
    local text = input[FIELDS[field]]
    if type(text) ~= "string" or not fits_any(globs, text) then return false end
  end
  return true
end

--- Might the policy @about have a word in a change of a key of a user's?
function M.concerns_kv(about)
  local has = false
  for _, name in ipairs(about.hooks) do has = has or name == "admit.change" end
  local kinds = (about.match["admit.change"] or {}).kinds
  return has and (kinds == nil or fits_any(kinds, "kv"))
end

local function bad(...)
  errors.raise("invalid", "the policy: " .. (...):format(select(2, ...)))
end

local function check_match(match, hooks)
  local out = {}
  for hook, fields in pairs(match) do
    if not hooks[hook] then bad("match names %s, for which there is no hook", tostring(hook):sub(1, 80)) end
    if type(fields) ~= "table" then bad("match of %s is no table", hook) end
    out[hook] = {}
    for field, globs in pairs(fields) do
      if not FIELDS[field] then bad("match has no field %s", tostring(field):sub(1, 80)) end
      if type(globs) ~= "table" or #globs > GLOBS_MAX then
        bad("match.%s is a list of at most %d texts", field, GLOBS_MAX)
      end
      out[hook][field] = json.array {}
      for i, glob in ipairs(globs) do
        if type(glob) ~= "string" or #glob > GLOB_MAX then
          bad("match.%s is a list of texts of at most %d bytes", field, GLOB_MAX)
        end
        out[hook][field][i] = glob
      end
    end
  end
  return out
end

local nullable = json.nullable

--- What a policy says of itself, as the sandbox tells it and nobody has checked it: {summary, order, hooks = {names,
--- sorted}, match}. Raises "invalid".
function M.check_about(given)
  if type(given) ~= "table" then bad("says nothing of itself") end
  local summary, order, names = nullable(given.summary) or "", nullable(given.order) or M.ORDER, given.hooks
  if type(summary) ~= "string" then bad("summary is a text") end
  if math.type(order) ~= "integer" or order < 0 or order > M.ORDER_MAX then bad("order is a whole number, 0 to 100") end
  if type(names) ~= "table" or #names == 0 then bad("has no hooks") end
  if #names > HOOKS_MAX then bad("has more than %d hooks", HOOKS_MAX) end
  local hooks, known = json.array {}, {}
  for i, hook in ipairs(names) do
    if not M.is_hook(hook) then bad("there is no hook %s", tostring(hook):sub(1, 80)) end
    hooks[i], known[hook] = hook, true
  end
  table.sort(hooks)
  local match = nullable(given.match) or {}
  if type(match) ~= "table" then bad("match is a table") end
  return { summary = json.clean(summary:sub(1, SUMMARY_MAX)), order = order, hooks = hooks,
    match = check_match(match, known) }
end

return M

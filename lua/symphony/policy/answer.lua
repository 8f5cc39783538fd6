--- What the sandbox answers, as bytes from outside: it runs other people's code, and may have been taken over by it.
--- Pure.
local errors = require "symphony.errors"
local json = require "symphony.json"

local M = {}

local READABLE = { "/kv/", "/res/", "/node/", "/status/" }
local TEXT_MAX = 1000 -- bytes of a reason or an error that is shown
local ROWS_MAX = 64   -- policies there are
local READS_MAX = 64
local SAID = { nothing = true, allow = true, refuse = true, amend = true, approve = true, choose = true,
  commands = true, failed = true }

local nullable = json.nullable

local function bad(what)
  errors.raise("policy_failed", "the sandbox's answer cannot be read: " .. what)
end

-- nil, or a table. Raises.
local function object(v, what)
  v = nullable(v)
  if v ~= nil and type(v) ~= "table" then bad(what) end
  return v
end

local function list(v, what, most)
  v = object(v, what) or {}
  if #v > most or (next(v) ~= nil and #v == 0) then bad(what) end
  return v
end

local function words(v, what)
  return type(v) == "string" and json.clean(v:sub(1, TEXT_MAX)) or bad(what)
end

local function number(v)
  return math.type(v) == "integer" and v >= 0 and v or nil
end

local function row_of(row)
  if type(row) ~= "table" or type(row.policy) ~= "string" or not SAID[row.said] then bad("a row of the trace") end
  local err = nullable(row.error)
  return { policy = json.clean(row.policy:sub(1, 64)), said = row.said, decision = object(row.decision, "a decision"),
    error = err ~= nil and words(err, "an error") or nil, us = number(row.us), instructions = number(row.instructions) }
end

local function trace_of(rows)
  local out = json.array {}
  for i, row in ipairs(list(rows, "the trace", ROWS_MAX)) do out[i] = row_of(row) end
  return out
end

local function decision_of(decision)
  decision = object(decision, "the decision")
  if not decision then return nil end
  local why = nullable(decision.refuse)
  return { refuse = why ~= nil and words(why, "a reason") or nil, choose = object(decision.choose, "a choice"),
    commands = object(decision.commands, "commands") }
end

local function is_readable(name)
  for _, prefix in ipairs(READABLE) do
    if type(name) == "string" and name:sub(1, #prefix) == prefix then return true end
  end
  return false
end

-- One thing that was read: {key, revision} or {prefix, revision, count}.
local function read_of(read)
  if type(read) ~= "table" or not number(read.revision) then bad("a read") end
  if is_readable(read.key) then return { key = read.key, revision = read.revision } end
  if is_readable(read.prefix) and number(read.count) then
    return { prefix = read.prefix, revision = read.revision, count = read.count }
  end
  bad("a read")
end

--- The answer to a call: {decision = {refuse, choose, commands} or nil, amended = a table or nil, approve = true when
--- any policy says so, trace, reads = {{key, revision} | {prefix, revision, count}}}. Raises "policy_failed".
function M.of_call(text)
  local got = json.decode(text)
  if type(got) ~= "table" then bad("no object") end
  local out = { decision = decision_of(got.decision), amended = object(got.amended, "an amendment"),
    trace = trace_of(got.trace), reads = {} }
  for i, read in ipairs(list(got.reads, "the reads", READS_MAX)) do out.reads[i] = read_of(read) end
  for _, row in ipairs(out.trace) do
    if row.decision and row.decision.approve == true then out.approve = true end
  end
  return out
end

--- The trace of what was found out before a call failed; what cannot be read is none.
function M.trace_before(text)
  local got = text and json.decode(text)
  local ok, trace = pcall(function() return trace_of(type(got) == "table" and got.trace or nil) end)
  return ok and trace or json.array {}
end

--- The compares that hold as long as nothing of @read has changed: one or two.
function M.compares(read)
  if read.prefix then
    return { { prefix = read.prefix, revision = read.revision }, { prefix = read.prefix, count = read.count } }
  elseif read.revision == 0 then
    return { { key = read.key, absent = true } }
  end
  return { { key = read.key, mod_revision = read.revision } }
end

--- The answer to a test: {about (as it is, see match.check_about), cases = {{name, ok, got, want, error}}}. Raises.
function M.of_test(text)
  local got = json.decode(text)
  if type(got) ~= "table" then bad("no object") end
  local out = { about = got.about, cases = json.array {} }
  for i, case in ipairs(list(got.cases, "the cases", 1000)) do
    if type(case) ~= "table" then bad("a case") end
    local err, name = nullable(case.error), nullable(case.name)
    out.cases[i] = { name = name ~= nil and words(name, "a name") or tostring(i), ok = case.ok == true,
      got = nullable(case.got), want = nullable(case.want), error = err ~= nil and words(err, "an error") or nil }
  end
  return out
end

return M

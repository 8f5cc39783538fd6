--- sym.policy for tests: chunks run in this very process, in the environment that SPEC says, without any of the
--- sandbox's limits. Require it behind spec.unit.cluster_fake.
local fake = require "spec.unit.cluster_fake"

local M = { loaded = {}, calls = {}, marks = nil }

local json -- symphony.json, once the fakes are there

local READABLE = { "/kv/", "/res/", "/node/", "/status/" }

local function readable(key)
  for _, prefix in ipairs(READABLE) do
    if key:sub(1, #prefix) == prefix then return true end
  end
  error("not readable: " .. key, 0)
end

local function shown(key, value)
  return key:sub(1, 4) == "/kv/" and value or json.decode(value)
end

-- What may be read of the state, as {key = value}; recorded in @reads.
local function reader(state, reads)
  local function rows(prefix)
    readable(prefix)
    local keys, highest = {}, 0
    for key, kv in pairs(state) do
      if key:sub(1, #prefix) == prefix then
        keys[#keys + 1] = key
        highest = math.max(highest, kv.mod_revision)
      end
    end
    table.sort(keys)
    reads[#reads + 1] = { prefix = prefix, revision = highest, count = #keys }
    return keys
  end
  return {
    get = function(key)
      readable(key)
      local kv = state[key]
      reads[#reads + 1] = { key = key, revision = kv and kv.mod_revision or 0 }
      return kv and shown(key, kv.value)
    end,
    list = function(prefix, limit)
      local out = {}
      for i, key in ipairs(rows(prefix)) do
        if i > (limit or 1000) then break end
        out[i] = { key = key, value = shown(key, state[key].value) }
      end
      return out
    end,
    count = function(prefix) return #rows(prefix) end,
  }
end

local function sorted_pairs(t)
  local keys, i = {}, 0
  for k in pairs(t) do keys[#keys + 1] = k end
  table.sort(keys, function(a, b) return tostring(a) < tostring(b) end)
  return function()
    i = i + 1
    return keys[i], t[keys[i]]
  end
end

-- The environment of a policy, and the box that tells it where to read.
local function environment()
  local box = {}
  local env = {
    allow = function() return { allow = true } end,
    refuse = function(why) return { refuse = why or "no reason given" } end,
    amend = function(fields) return { amend = fields } end,
    approve = function() return { approve = true } end,
    choose = function(ids) return { choose = ids } end,
    set_label = function(node, key, value) return { do_ = "label", node = node, key = key, value = value } end,
    drain = function(node) return { do_ = "availability", node = node, value = "drain" } end,
    activate = function(node) return { do_ = "availability", node = node, value = "active" } end,
    kv_put = function(key, value) return { do_ = "kv.put", key = key, value = value } end,
    kv_rm = function(key) return { do_ = "kv.rm", key = key } end,
    event = function(text) return { do_ = "event", text = text } end,
    glob = require("sym.rules").glob, sorted_pairs = sorted_pairs, type = type,
    tostring = tostring, tonumber = tonumber, ipairs = ipairs, pairs = sorted_pairs,
    select = select, error = error, assert = assert,
    string = { find = string.find, match = string.match, gmatch = string.gmatch, gsub = string.gsub, sub = string.sub,
      lower = string.lower, upper = string.upper, format = string.format, byte = string.byte, char = string.char,
      len = string.len, reverse = string.reverse, rep = string.rep },
    math = math, table = { insert = table.insert, remove = table.remove, unpack = table.unpack, sort = table.sort,
      concat = table.concat }, utf8 = utf8,
  }
  for _, name in ipairs { "get", "list", "count" } do
    env[name] = function(...) return box.reader[name](...) end
  end
  return env, box
end

local function load_policy(source)
  json = json or require "symphony.json"
  local env, box = environment()
  local chunk, why = load(source, "=policy", "t", env)
  if not chunk then return nil, { code = "policy_failed", message = why } end
  local ok, policy = pcall(chunk)
  if not ok then return nil, { code = "policy_failed", message = tostring(policy) } end
  if type(policy) ~= "table" or type(policy.hooks) ~= "table" then
    return nil, { code = "policy_failed", message = "a policy returns a table with hooks" }
  end
  local hooks = json.array {}
  for name in sorted_pairs(policy.hooks) do hooks[#hooks + 1] = name end
  policy.about = { summary = policy.summary, order = policy.order or 50, hooks = hooks, match = policy.match,
    memory = 1000, selftest = #(policy.selftest or {}) }
  policy.box = box
  return policy
end

-- Commands may be given as a list; json.null where there is none.
local function normal(decision)
  if type(decision) == "table" and decision[1] then return { commands = decision } end
  return decision
end

local function said(decision)
  if decision == nil then return "nothing" end
  for _, what in ipairs { "refuse", "amend", "choose", "commands" } do
    if decision[what] then return what end
  end
  return "allow"
end

local function run(policy, hook, input, state, reads)
  policy.box.reader = reader(state, reads)
  local ok, decision = pcall(policy.hooks[hook], json.decode(json.encode(input)))
  if not ok then return nil, tostring(decision) end
  return normal(decision)
end

local function fake_state(doc)
  local state = {}
  for key, value in pairs(doc or {}) do
    state[key] = { value = type(value) == "string" and value or json.encode(value), mod_revision = 1 }
  end
  return state
end

-- Of a document that is changed the fields of an amendment are its own.
local function amend(hook, input, fields)
  local document = hook == "admit.change" and type(input.new) == "table" and input.new
  local target = document or input
  for k, v in pairs(fields) do
    assert(document or hook ~= "admit.change" or (k == "new" and type(v) == "string"), "only new can be amended")
    target[k] = v
  end
end

-- What the policies of @list ({{name, policy}}) say, one after the other.
local function decide(list, hook, input, state)
  local result = { trace = json.array {}, reads = json.array {} }
  for _, item in ipairs(list) do
    local decision, why = run(item.policy, hook, input, state, result.reads)
    local row = { policy = item.name, said = why and "failed" or said(decision), decision = decision, error = why,
      us = 1, instructions = 1 }
    table.insert(result.trace, row)
    if why then break end
    if decision and decision.amend then
      amend(hook, input, decision.amend)
      result.amended = input
    end
    if decision then result.decision = decision end
    if decision and decision.refuse then break end
  end
  return result
end

local function equal(want, got)
  if type(want) ~= "table" or type(got) ~= "table" then return want == got end
  for k, v in pairs(want) do
    if not equal(v, got[k]) then return false end
  end
  for k in pairs(got) do
    if want[k] == nil then return false end
  end
  return true
end

local function fits(want, got)
  if next(want) == nil then return got == nil end
  for k, v in pairs(want) do
    if not got then return false end
    if k == "refuse" and v == true then
      if got.refuse == nil then return false end
    elseif not equal(v, got[k]) then
      return false
    end
  end
  return true
end

local policy_module = fake.module("policy", {
  configure = function(opts) M.configured = opts end,
  load = function(name, source, cb)
    if M.load_error then return cb(M.load_error) end
    local policy, err = load_policy(source)
    if not policy then return cb(err) end
    M.loaded[name] = policy
    cb(nil, json.encode(policy.about))
  end,
  drop = function(name) M.loaded[name] = nil end,
  call = function(hook, text, opts, cb)
    json = json or require "symphony.json"
    M.calls[#M.calls + 1] = { hook = hook, only = opts.only }
    if M.before_call then M.before_call(hook) end
    if M.call_error then return cb(M.call_error) end
    local names = type(opts.only) == "string" and { opts.only } or opts.only
    local list = {}
    for i, name in ipairs(names) do list[i] = { name = name, policy = assert(M.loaded[name], name) } end
    local state = opts.state_json and fake_state(json.decode(opts.state_json)) or fake.kvs
    local result = decide(list, hook, json.decode(text), state)
    if M.after_call then M.after_call(hook) end
    cb(nil, json.encode(result))
  end,
  test = function(source, cases, cb)
    local policy, err = load_policy(source)
    if not policy then return cb(err) end
    local list = cases and json.decode(cases) or policy.selftest or {}
    local out = { about = policy.about, cases = json.array {} }
    for i, case in ipairs(list) do
      local row = { name = case.name or tostring(i), want = case.expect or json.null }
      if not policy.hooks[case.hook] then
        row.ok, row.error = false, "there is no such hook in it"
      else
        local result = decide({ { name = "test", policy = policy } }, case.hook, case.input, fake_state(case.state))
        row.got, row.error = result.decision, result.trace[1].error
        row.ok = not row.error and (case.expect == nil or fits(case.expect, row.got))
      end
      out.cases[i] = row
    end
    cb(nil, json.encode(out))
  end,
  loaded = function(revision, count) M.marks = { revision, count } end,
  stats = function() return { calls = #M.calls, broken = M.broken } end,
})

--- As in a daemon that has just been started.
function M.reset()
  M.loaded, M.calls, M.marks = {}, {}, nil
  M.call_error, M.before_call, M.after_call, M.load_error, M.broken = nil, nil, nil, nil, {}
  require("symphony.policy.engine").stop()
end

M.module = policy_module

-- What the specs of policies have in common ---------------------------------------------------------------------------

--- A policy with one @hook; @more: other fields of it.
function M.source(hook, body, more)
  return ([[return { %s hooks = { ["%s"] = function(input) %s end } }]]):format(more or "", hook, body)
end

--- The body of a test as a task, in a cluster of one manager that has just been made.
function M.cluster(fn)
  return fake.task(function()
    fake.reset()
    M.reset()
    fake.make()
    fn()
  end)
end

--- fn(...) has to raise an error of @code whose message fits @pattern: that error.
function M.fails(code, pattern, fn, ...)
  local ok, err = pcall(fn, ...)
  assert(not ok, "it did not fail")
  assert(err.code == code and err.message:find(pattern), ("%s: %s"):format(err.code, err.message))
  return err
end

--- What the user's key @key holds; nil.
function M.value(key)
  return (require("symphony.cluster.state").text("/kv/" .. key))
end

--- The events of @kind, also those that are just being written.
function M.told(kind)
  require("symphony.async").sleep(5)
  return require("symphony.cluster.events").list { kind = kind }
end

return M

local answer = require "symphony.policy.answer"
local errors = require "symphony.errors"
local json = require "symphony.json"
local match = require "symphony.policy.match"
local rules = require "sym.rules"

-- Calls fn(...): its result, or nil when it raised one of the errors that are meant for people.
local function attempt(fn, ...)
  local ok, got = pcall(fn, ...)
  if ok then return got end
  assert(errors.is(got), got)
  assert(got.code == "policy_failed" or got.code == "invalid", got.code)
  assert(utf8.len(json.encode(errors.body(got))))
end

-- What is told of an answer can be written down, and its compares are ones that a txn takes.
local function check_call(text)
  local out = attempt(answer.of_call, text)
  if not out then return end
  for _, row in ipairs(out.trace) do assert(#row.policy <= 256 and utf8.len(row.policy)) end
  assert(json.encode(out.trace))
  if out.decision and out.decision.refuse then assert(utf8.len(out.decision.refuse)) end
  for _, read in ipairs(out.reads) do
    for _, c in ipairs(answer.compares(read)) do
      local name = c.prefix or c.key
      assert(name:find("^/kv/") or name:find("^/res/") or name:find("^/node/") or name:find("^/status/"))
      assert(c.absent == true or math.type(c.revision or c.mod_revision or c.count) == "integer")
    end
  end
end

local function check_about(text)
  local about = attempt(match.check_about, (json.decode(text)))
  if not about then return end
  assert(about.order >= 0 and about.order <= 100 and #about.summary <= 800)
  for _, hook in ipairs(about.hooks) do
    assert(match.is_hook(hook))
    match.concerns(about, hook, { kind = "kv", key = text:sub(1, 100), action = "put", name = text:sub(1, 20) })
  end
  match.concerns_kv(about)
  assert(json.encode(attempt(match.check_about, (json.decode(json.encode(about))))) == json.encode(about))
end

return {
  check = function(text)
    check_call(text)
    check_about(text)
    local test = attempt(answer.of_test, text)
    if test then assert(json.encode(test.cases)) end
    answer.trace_before(text)
    -- A glob fits what it is made of.
    local plain = text:gsub("[*?]", "x"):sub(1, rules.GLOB_MAX - 1)
    assert(rules.glob("*", text) and rules.glob(plain, plain) and rules.glob(plain .. "*", plain))
  end,
  seeds = { '{"decision":{"refuse":"no"},"amended":null,"trace":[{"policy":"a","said":"refuse","us":3,"instructions":9,'
    .. '"decision":{"refuse":"no"}}],"reads":[{"key":"/kv/a","revision":0},{"prefix":"/kv/","revision":3,"count":2}]}',
    '{"summary":"s","order":3,"hooks":["admit.change","every.5m"],"match":{"admit.change":{"kinds":["kv"]}}}',
    '{"about":{"hooks":["node.up"]},"cases":[{"name":"a","ok":false,"want":{},"got":null,"error":"x"}]}' },
  words = { '"decision":', '"amended":', '"trace":', '"reads":', '"policy":', '"said":', '"hooks":', '"match":',
    '"prefix":', '"/kv/"', '"count":', '"admit.join"', '"place.x"', '"every.1s"', "null", "{}", "[]", "*", "?", "\xff",
    "1.5", "-1" },
}

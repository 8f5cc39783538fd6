-- The policies in contrib: each says what it is for and passes its own cases.
local fake = require "spec.unit.cluster_fake"
require "spec.unit.policy_fake"
local engine = require "symphony.policy.engine"
local json = require "symphony.json"
local why_failed = require("symphony.policy.cases").why_failed

local function read(path)
  local f <close> = assert(io.open(path))
  return f:read "a"
end

-- What hooks are called with, of every kind there is: of each the least that it may have, and all.
local WHO = { { kind = "control", name = "m1" }, { kind = "certificate", name = "anna", role = "operator" },
  { kind = "policy", name = "p" } }
local NODE = { node_id = "n1", name = "worker-1", role = "worker", labels = { zone = "a" }, availability = "active" }
local BARE = { node_id = "n2", name = "m2", role = "manager" }
local DISK = { kind = "disk", id = "d1", spec = { size = 1 }, replicas = 1, constraints = {}, nodes = {} }

local function changes()
  local out = {}
  local function add(kind, key, action, old, new)
    for _, who in ipairs(WHO) do
      out[#out + 1] = { kind = kind, key = key, action = action, old = old, new = new, who = who,
        old_revision = old and 3 or nil }
    end
  end
  local function both(kind, key, old, new)
    add(kind, key, "put", nil, new)
    add(kind, key, "put", old, new)
    add(kind, key, "delete", old, nil)
    add(kind, key, "delete", nil, nil)
  end
  both("kv", "team/a/b", "1", "2")
  both("kv", "", "", "")
  both("kv", "a\u{FFFD}", "\u{FFFD}", "\u{FFFD}")
  out[#out + 1] = { kind = "kv", key = "\u{FFFD}", key_base64 = "/w==", action = "put", new = "\u{FFFD}",
    new_base64 = "/w==", who = WHO[1] }
  both("node", "n1", NODE, NODE)
  both("node", "n2", BARE, BARE)
  both("disk", "d1", DISK, DISK)
  both("disk", "d1", {}, {})
  -- As somebody types it who tries it out.
  for _, kind in ipairs { "kv", "node", "disk" } do
    out[#out + 1] = { kind = kind, key = "a/b" }
    out[#out + 1] = { kind = kind, key = "a/b", action = "put" }
  end
  return out
end

local INPUTS = {
  ["admit.change"] = changes(),
  ["admit.join"] = {
    { role = "worker", name = "host", token = false, who = WHO[1] },
    { role = "manager", name = "host.example.org", address = "192.0.2.1", token = true, labels = {}, addresses = {},
      services = {}, version = "1.0" },
    { role = "worker", name = "w1", address = "::1", token = false, approved = true, labels = { zone = "a" },
      addresses = { remote = "[::1]:1", gossip = "[::1]:2" }, services = { "block" }, version = "1.0" },
    { role = "manager", name = "m2", address = "127.0.0.1", token = false, returns = true, labels = { zone = "a" },
      addresses = { raft = "127.0.0.1:1", remote = "127.0.0.1:2", gossip = "127.0.0.1:3" } },
  },
  place = {
    { resource = DISK, candidates = {}, want = 0, current = {} },
    { resource = DISK, candidates = { { node_id = "n2", name = "m2" } }, want = 3, current = { "gone" } },
    { resource = DISK, want = 2, current = { "n1" }, candidates = {
      { node_id = "n1", name = "w1", labels = { zone = "a" }, services = { "block" }, load = 3 },
      { node_id = "n2", name = "w2", labels = {}, services = {}, load = 0 } } },
  },
  ["node.down"] = { { node = { node_id = "n1", labels = {} } },
    { node = NODE, name = "worker-1", role = "worker", reason = "no answer", since = 1700000000.123 } },
  ["leader.change"] = { { leader = { node_id = "n1", name = "m1" }, term = 1 } },
  every = { { now = 0 }, { now = 1700000000 } },
}
INPUTS["node.up"] = INPUTS["node.down"]

-- What there is to read: nothing, or all that any of them looks at, in good order and in none.
local STATES = {
  {},
  { ["/kv/quota/keys/team/"] = "0", ["/kv/quota/label/zone=a"] = "0", ["/kv/names/folders"] = "app",
    ["/kv/maintenance/open"] = "no", ["/kv/maintenance/windows"] = "Sat 22:00-04:00", ["/kv/fanout/drain"] = "yes",
    ["/kv/fanout/drained/n1"] = "yes", ["/node/n1"] = NODE, ["/node/n2"] = BARE },
  { ["/kv/quota/keys/team/"] = "many", ["/kv/quota/label/zone=a"] = "", ["/kv/names/folders"] = "",
    ["/kv/maintenance/override"] = "closed", ["/kv/maintenance/windows"] = "never", ["/kv/fanout/drain"] = "yes" },
}

-- Every input of each of @hooks, with each state, as cases that expect nothing.
local function cases_of(hooks)
  local out = {}
  for _, hook in ipairs(hooks) do
    for _, input in ipairs(INPUTS[hook] or INPUTS[hook:match("^%l+")]) do
      for _, state in ipairs(STATES) do
        out[#out + 1] = { name = hook .. " " .. json.encode(input), hook = hook, input = input, state = state }
      end
    end
  end
  return out
end

describe("contrib/policies", function()
  for _, name in ipairs { "dev", "spread", "quota", "maintenance", "names", "fanout" } do
    it("has " .. name .. ", which passes its selftest", fake.task(function()
      fake.reset()
      local source = read(("contrib/policies/%s.lua"):format(name))
      local tested = assert(engine.test(source))
      assert.truthy(#tested.about.summary > 20)
      assert.is_true(#tested.cases >= 4)
      for _, case in ipairs(tested.cases) do
        assert.is_true(case.ok, ("%s: %s: %s"):format(name, case.name, case.ok or why_failed(case)))
      end
      local cases = cases_of(tested.about.hooks)
      local tried = assert(engine.test(source, cases))
      assert.equal(#cases, #tried.cases)
      for _, case in ipairs(tried.cases) do
        assert.is_true(case.ok, ("%s: %s: %s"):format(name, case.name, case.ok or why_failed(case)))
      end
    end))
  end

  it("has no policy besides that nobody tries", function()
    local n = 0
    local folder = assert(require("luv").fs_scandir("contrib/policies"))
    for _ in require("luv").fs_scandir_next, folder do n = n + 1 end
    assert.equal(6, n)
  end)

  it("has quota, which refuses what it cannot count, and does not fail by that", fake.task(function()
    fake.reset()
    local state = { ["/kv/quota/label/rack=7"] = "5" }
    for i = 1, 1000 do state[("/node/n%d"):format(i)] = { node_id = "n" .. i, labels = {} } end
    local case = { name = "many", hook = "admit.join", state = state, expect = { refuse = true },
      input = { role = "worker", name = "n", labels = { rack = "7" } } }
    local tested = assert(engine.test(read "contrib/policies/quota.lua", { case }))
    assert.is_true(tested.cases[1].ok, tested.cases[1].error)
  end))
end)

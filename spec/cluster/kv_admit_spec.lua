-- Changes of single keys that policies decide on: on the leader without Lua where they say yes, and to the same effect
-- wherever they come in.
local cluster = require "spec.support.cluster"
local json = require "spec.support.json"
local proc = require "spec.support.proc"

local function set(t, m, name, body, match)
  local path = t.root .. "/" .. name .. ".lua"
  proc.write_file(path, ("return { %s hooks = { ['admit.change'] = function(c) %s end } }"):format(match or "", body))
  m:json("policy", "set", name, path)
end

-- How often the policy was asked without Lua.
local function heard(m, name)
  local code = ("return require('sym.node').kv_heard(%q)"):format(name)
  return assert(tonumber(m:cli("lua", "-e", code).out))
end

local function put(m, key, value)
  local answer = m:http("PUT", "/v1/kv/" .. key, value)
  return answer.status, json.decode(answer.body)
end

describe("changes of keys past policies", function()
  it("are decided without Lua where all say yes, and else to the same effect", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    set(t, m, "limits", [[
      if c.kind ~= "kv" then return end
      if c.action == "delete" then return c.old == "keep" and refuse("it is kept") or nil end
      if c.new == "bad" then return refuse("bad " .. c.key) end
      if c.new == "small" then return amend { new = "SMALL" } end
      if c.new == "fail" then error("oh") end
      if c.old then return c.old_revision > 0 and c.who.kind == "control" and #c.who.name > 0 and allow() end
      return get("/kv/closed") and refuse("closed") or allow()]])
    local n = heard(m, "limits")
    for i = 1, 5 do assert.equal(200, (put(m, "a", "v" .. i))) end
    assert.equal(n + 5, heard(m, "limits"))
    assert.equal(200, m:http("DELETE", "/v1/kv/a").status)
    assert.equal(n + 6, heard(m, "limits"))
    assert.equal(404, m:http("GET", "/v1/kv/a").status)

    local status, doc = put(m, "a", "bad")
    assert.same({ 403, "denied", "limits" }, { status, doc.error.code, doc.error.policy })
    assert.truthy(doc.error.message:find("bad a", 1, true))
    status, doc = put(m, "a", "small")
    assert.same({ 200, { "limits" } }, { status, doc.policies })
    assert.equal("SMALL", json.decode(m:http("GET", "/v1/kv/a").body).value)
    status, doc = put(m, "a", "fail")
    assert.same({ 503, "policy_failed", "limits" }, { status, doc.error.code, doc.error.policy })
    assert.equal(200, (put(m, "raw", "\xff\xfe")))
    assert.equal(200, (put(m, "b", "keep")))
    assert.equal(403, m:http("DELETE", "/v1/kv/b").status)

    -- The client's own condition is its own.
    assert.equal(409, m:http("PUT", "/v1/kv/b?mod_revision=0", "x").status)
    local revision = json.decode(m:http("GET", "/v1/kv/b").body).mod_revision
    assert.equal(200, m:http("PUT", "/v1/kv/b?mod_revision=" .. revision, "x").status)

    assert.equal(200, (put(m, "closed", "yes")))
    assert.equal(403, (put(m, "new", "x")))
    m:json("policy", "rm", "limits")
    assert.equal(200, (put(m, "new", "bad")))
  end))

  it("cannot pass a quota of one both, however close they are", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    set(t, m, "one", [[if count("/kv/slot/") >= 1 and not c.old then return refuse("taken") end]],
      [[match = { ["admit.change"] = { kinds = { "kv" }, keys = { "slot/*" } } },]])
    for round = 1, 3 do
      local calls = {}
      for i = 1, 12 do
        calls[i] = proc.begin { "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--unix-socket", m.socket, "-X",
          "PUT", "-d", "x", ("http://localhost/v1/kv/slot/%d-%d"):format(round, i) }
      end
      local passed = 0
      for _, call in ipairs(calls) do
        cluster.wait_for("a change to be answered", 30, call.ended)
        assert.truthy(({ ["200"] = true, ["403"] = true, ["409"] = true })[call.out], call.out)
        if call.out == "200" then passed = passed + 1 end
      end
      assert.equal(1, passed)
      local rows = json.decode(m:http("GET", "/v1/kv?prefix=slot/").body)
      local kvs = rows.kvs or rows.items or rows
      assert.equal(1, #kvs)
      assert.equal(200, m:http("DELETE", "/v1/kv/" .. kvs[1].key).status)
    end
    assert.equal(0, heard(m, "other"))
    -- What no policy wants to hear of goes past them.
    local n = heard(m, "one")
    assert.equal(200, (put(m, "other", "x")))
    assert.equal(n, heard(m, "one"))
  end))

  it("go by the policies of the moment on every manager", cluster.scenario(function(t)
    local list = t:cluster(3)
    for round = 1, 3 do
      set(t, list[1], "no", [[return refuse("no")]])
      for i, m in ipairs(list) do assert.equal(403, (put(m, "x/" .. i, tostring(round)))) end
      set(t, list[1], "no", [[return allow()]])
      for i, m in ipairs(list) do assert.equal(200, (put(m, "x/" .. i, tostring(round)))) end
      list[2]:json("policy", "rm", "no")
      for i, m in ipairs(list) do assert.equal(200, (put(m, "x/" .. i, tostring(round) .. "!"))) end
    end
  end))
end)

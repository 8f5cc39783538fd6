-- Changes of single keys that policies decide on: without Lua where they say yes, and to the same effect wherever they
-- come in.
local clients = require "spec.support.clients"
local cluster = require "spec.support.cluster"
local json = require "spec.support.json"
local proc = require "spec.support.proc"
local uv = require "luv"

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

-- Waits until the policy @name, which allows a change of @key, is asked without Lua; how often that was by then.
local function asked_in_c(m, name, key)
  local before, n = heard(m, name), nil
  cluster.wait_for("it to be asked without Lua", 20, function()
    assert.equal(200, (put(m, key, "x")))
    n = heard(m, name)
    return n > before
  end)
  return n
end

-- Sends @requests ({method, target, body, headers}) at once over one connection to @m's control socket: a function that
-- waits for the answers in their order, {status, json}.
local function begin(m, requests)
  local text = {}
  for i, r in ipairs(requests) do
    text[i] = ("%s %s HTTP/1.1\r\nHost: s\r\n%sContent-Length: %d\r\n\r\n%s"):format(r[1], r[2], r[4] or "",
      #(r[3] or ""), r[3] or "")
  end
  local got, over = "", false
  local pipe = uv.new_pipe(false)
  local answers = {}
  local function take()
    local head, at = got:match("^(.-\r\n)\r\n()")
    local status, length = (head or ""):match("^HTTP/1.1 (%d+).*\r\nContent%-Length: (%d+)\r\n")
    if not at or #got < at + length - 1 then return false end
    answers[#answers + 1] = { tonumber(status), json.decode(got:sub(at, at + length - 1)) }
    got = got:sub(at + length)
    return true
  end
  pipe:connect(m.socket, function()
    pipe:read_start(function(_, data)
      if not data then over = true else got = got .. data end
      while take() do end
      over = over or #answers == #requests
    end)
    pipe:write(table.concat(text))
  end)
  return function()
    assert.truthy(proc.pump(30 * cluster.patience, function() return over end), "answers are missing")
    pipe:close()
    assert.equal(#requests, #answers)
    return answers
  end
end

local function pipeline(m, requests)
  return begin(m, requests)()
end

-- Entries that the leader @m has put into the log.
local function packs(m)
  return tonumber(m:cli("lua", "-e", "return require('sym.raft').stats().packs").out)
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
    local n = asked_in_c(m, "limits", "warm")
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
      for i, m in ipairs(list) do
        local n = heard(m, "no")
        assert.equal(200, (put(m, "x/" .. i, tostring(round))))
        -- Also by those who do not lead, once they have heard of it.
        cluster.wait_for("it to be asked without Lua", 20, function()
          assert.equal(200, (put(m, "x/" .. i, tostring(round))))
          return heard(m, "no") > n
        end)
      end
      list[2]:json("policy", "rm", "no")
      for i, m in ipairs(list) do assert.equal(200, (put(m, "x/" .. i, tostring(round) .. "!"))) end
    end
  end))

  it("are carried out side by side from one connection, in the order in which they came", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    set(t, m, "limits", [[
      if c.new == "bad" then return refuse("bad") end
      if c.new == "amend" then return amend { new = "AMENDED" } end
      if c.new == "slow" then for i = 1, 300000 do local _ = i end end
      return allow()]])
    asked_in_c(m, "limits", "warm")
    local N = 48
    local requests = {}
    for i = 1, N do requests[i] = { "PUT", "/v1/kv/side/" .. i, "v" } end
    local entries, n = packs(m), heard(m, "limits")
    local last = 0
    for _, answer in ipairs(pipeline(m, requests)) do
      assert.equal(200, answer[1])
      assert.is_true(answer[2].revision > last)
      last = answer[2].revision
    end
    -- One by one each would be an entry of its own.
    assert.is_true(packs(m) - entries < N, packs(m) - entries)
    assert.is_true(heard(m, "limits") >= n + N)

    -- Also where one is refused, made something else of, not text, of the same key as another, or conditional.
    local function order(list)
      local got = {}
      for i, answer in ipairs(pipeline(m, list)) do got[i] = answer[1] end
      return got
    end
    for round = 1, 3 do
      local value = "r" .. round
      local answers = pipeline(m, {
        { "PUT", "/v1/kv/o/1", value }, { "PUT", "/v1/kv/o/1", "amend" }, { "PUT", "/v1/kv/o/1", value .. "b" },
        { "PUT", "/v1/kv/o/2", "bad" }, { "PUT", "/v1/kv/o/3", "slow" }, { "DELETE", "/v1/kv/o/1" },
        { "PUT", "/v1/kv/o/raw", "\xff" .. round }, { "PUT", "/v1/kv/o/4", value },
        { "PUT", "/v1/kv/o/5?mod_revision=1", value }, { "PUT", "/v1/kv/o/6", value }, { "DELETE", "/v1/kv/o/6" },
        { "DELETE", "/v1/kv/o/6" }, { "PUT", "/v1/kv/o/7", ("x"):rep(4000) }, { "PUT", "/v1/kv/o/8", value },
        { "PUT", "/v1/kv/o/8", value }, { "PUT", "/v1/kv/o/9", value, "Idempotency-Key: k" .. round .. "\r\n" },
        { "PUT", "/v1/kv/o/9", value, "Idempotency-Key: k" .. round .. "\r\n" }, { "PUT", "/v1/kv/o/10", value },
      })
      local want = { 200, 200, 200, 403, 200, 200, 200, 200, 409, 200, 200, 200, 200, 200, 200, 200, 200, 200 }
      local high = 0
      for i, answer in ipairs(answers) do
        assert.equal(want[i], answer[1], ("%d: %s"):format(i, json.encode(answer[2])))
        if answer[2].revision and not answer[2].repeated then
          -- A delete of what is not there changes nothing.
          assert.is_true(answer[2].revision > high or i == 12 and answer[2].revision == high, i)
          high = answer[2].revision
        end
      end
      assert.is_true(answers[17][2].repeated)
      assert.equal(answers[16][2].revision, answers[17][2].revision)
      assert.equal(404, m:http("GET", "/v1/kv/o/1").status)
      assert.equal(404, m:http("GET", "/v1/kv/o/6").status)
      assert.equal(value, json.decode(m:http("GET", "/v1/kv/o/10").body).value)
    end
    -- The last of the same key wins.
    local same = {}
    for i = 1, 20 do same[i] = { "PUT", "/v1/kv/same", tostring(i) } end
    for _, status in ipairs(order(same)) do assert.equal(200, status) end
    assert.equal("20", json.decode(m:http("GET", "/v1/kv/same").body).value)
  end))

  it("do not overtake one that has to be decided on again", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    set(t, m, "one", [[
      if c.key:find("^n/") and count("/kv/n/") >= 100 then return refuse("full") end
      return allow()]])
    asked_in_c(m, "one", "warm")
    -- Each looks at what those before it have changed: all but the first are decided on anew, one after the other.
    for round = 1, 3 do
      local requests = {}
      for i = 1, 12 do requests[i] = { "PUT", ("/v1/kv/n/%d-%d"):format(round, i), "x" } end
      requests[13] = { "PUT", "/v1/kv/marker", tostring(round) }
      local high = 0
      for _, answer in ipairs(pipeline(m, requests)) do
        assert.equal(200, answer[1], json.encode(answer[2]))
        assert.is_true(answer[2].revision > high)
        high = answer[2].revision
      end
    end
    -- What one rests on is there already, but from before another that has not taken effect yet.
    for round = 1, 10 do
      local high, r = 0, tostring(round)
      for _, answer in ipairs(pipeline(m, { { "PUT", "/v1/kv/e/1", r }, { "PUT", "/v1/kv/e/2", r },
        { "PUT", "/v1/kv/e/1", r }, { "PUT", "/v1/kv/e/3", r } })) do
        assert.equal(200, answer[1], json.encode(answer[2]))
        assert.is_true(answer[2].revision > high, round)
        high = answer[2].revision
      end
    end
    -- And what another connection does is the same.
    for round = 1, 20 do
      local r = tostring(round)
      local other = begin(m, { { "PUT", "/v1/kv/f/1", r } })
      local answers = pipeline(m, { { "PUT", "/v1/kv/f/1", r }, { "PUT", "/v1/kv/f/2", r },
        { "PUT", "/v1/kv/f/3", r } })
      assert.equal(200, other()[1][1])
      local high = 0
      for i, answer in ipairs(answers) do
        if i == 1 and answer[1] == 409 then
          assert.equal("conflict", answer[2].error.code)
        else
          assert.equal(200, answer[1], json.encode(answer[2]))
          assert.is_true(answer[2].revision > high, round)
          high = answer[2].revision
        end
      end
    end
    -- A policy that is set meanwhile.
    for round = 1, 4 do
      local call = proc.begin { cluster.symphony, "--socket", m.socket, "policy",
        round % 2 == 0 and "enable" or "disable", "one" }
      local high = 0
      repeat
        local requests = {}
        for i = 1, 20 do requests[i] = { "PUT", ("/v1/kv/m/%d"):format(i), tostring(proc.now()) .. i } end
        for _, answer in ipairs(pipeline(m, requests)) do
          assert.equal(200, answer[1], json.encode(answer[2]))
          assert.is_true(answer[2].revision > high)
          high = answer[2].revision
        end
      until call.ended()
      assert.equal(0, call.process.code, call.err)
    end
  end))

  it("are over before a change of another kind that comes behind them", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    set(t, m, "limits", [[if c.new == "bad" then return refuse("bad") end return allow()]])
    asked_in_c(m, "limits", "warm")
    for round = 1, 3 do
      local answers = pipeline(m, { { "PUT", "/v1/kv/x", "bad" }, { "PUT", "/v1/kv/y", "bad" },
        { "DELETE", "/v1/policies/limits" }, { "PUT", "/v1/kv/z", "bad" } })
      for i, status in ipairs { 403, 403, 200, 200 } do
        assert.equal(status, answers[i][1], ("%d, %d: %s"):format(round, i, json.encode(answers[i][2])))
      end
      m:json("policy", "rollback", "limits", "1")
      asked_in_c(m, "limits", "warm")
    end
  end))

  it("are asked about without Lua under an Idempotency-Key too, and done once", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    set(t, m, "limits", [[return c.new ~= "bad" and allow() or refuse("bad")]])
    asked_in_c(m, "limits", "warm")
    local function say(key, value)
      local answer = m:http("PUT", "/v1/kv/i", value, { headers = ("Idempotency-Key: %s\r\n"):format(key) })
      return answer.status, json.decode(answer.body)
    end
    local n = heard(m, "limits")
    local status, first = say("a", "1")
    assert.same({ 200, n + 1 }, { status, heard(m, "limits") })
    local again
    status, again = say("a", "1")
    assert.same({ 200, first.revision, true }, { status, again.revision, again.repeated })
    assert.equal(n + 1, heard(m, "limits")) -- nobody is asked about what has been done
    set(t, m, "limits", [[return refuse("closed")]])
    status, again = say("a", "1")
    assert.same({ 200, first.revision, true }, { status, again.revision, again.repeated })
    assert.equal(403, (say("b", "2")))
    m:json("policy", "rm", "limits")
    assert.equal(200, (say("b", "2")))
  end))

  it("are refused as too large whoever would be asked about them", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local function refused(answer, message)
      local err = json.decode(answer.body).error
      assert.same({ 413, "too_big", message, nil }, { answer.status, err.code, err.message, err.policy })
    end
    for _, body in ipairs { "return allow()", "return refuse('no')" } do
      set(t, m, "limits", body)
      if body:find("allow", 1, true) then asked_in_c(m, "limits", "warm") end
      for _, char in ipairs { "x", "\1", "\xff" } do
        local long = m:http("PUT", "/v1/kv/a", char:rep((1 << 20) + 1))
        refused(long, "a value of 1048577 bytes; at most 1 MiB fits")
      end
      -- As they are shown to a policy these are more than 4 MiB; one is asked about in C, and the others in Lua.
      local most = "the input of a hook has at most 4194304 bytes"
      refused(m:http("PUT", "/v1/kv/a", ("\1"):rep(1 << 20)), most)
      refused(m:http("PUT", "/v1/kv/a", ("\xff"):rep(1 << 20)), most)
      refused(m:http("POST", "/v1/txn", ([[{"ops": [{"put": "a", "value_base64": "%s"}]}]]):format(
        ("AQEB"):rep((1 << 20) // 3))), most)
    end
    assert.equal(404, m:http("GET", "/v1/kv/a").status)
  end))

  it("are done once, and in their order, where what was tried first came to nothing", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    -- As if a policy had been set meanwhile: the change of @key is remembered as one that did not hold.
    local function overtaken(key)
      local code = [[
        local parts = { "k", "PUT", "/v1/kv/%s", "", "v" }
        return assert(require("symphony.cluster.state").submit {
          decided = true, since = require("sym.store").revision(),
          id = require("sym.crypto").sha256(table.concat(parts, "\0")):sub(1, 16),
          compare = { { key = "/policy/none", mod_revision = 1 } },
          ops = { { put = "/kv/%s", value = "v" } } }).status]]
      assert.equal("\"conflict\"\n", m:cli("lua", "-e", code:format(key, key)).out)
    end
    local function both(key)
      return pipeline(m, { { "PUT", "/v1/kv/" .. key, "v", "Idempotency-Key: k\r\n" },
        { "PUT", "/v1/kv/behind", key } })
    end
    for round = 1, 2 do
      for i = 1, 5 do
        local key = ("o/%d-%d"):format(round, i)
        overtaken(key)
        local first = both(key)
        assert.same({ 200, 200 }, { first[1][1], first[2][1] }, json.encode(first))
        assert.is_true(first[1][2].revision < first[2][2].revision)
        local again = both(key)
        assert.same({ 200, first[1][2].revision, true, 200 },
          { again[1][1], again[1][2].revision, again[1][2].repeated, again[2][1] }, json.encode(again))
      end
      set(t, m, "limits", [[return allow()]])
      asked_in_c(m, "limits", "warm")
    end
  end))

  it("know no way around a policy that was just set on another manager", cluster.scenario(function(t)
    local list = t:cluster(3)
    local dir = t:folder("certs")
    list[1]:json("cert", "issue", "olga", "--role", "operator", "--out", dir)
    local olga = { "--cert", dir .. "/olga.crt", "--key", dir .. "/olga.key" }
    local other = [[{"ops": [{"put": "open/1", "value": "x"}, {"delete": "shut/1"}]}]]
    local FORGED = [[Symphony-Forwarded: 1
Symphony-Who: {"kind":"policy","name":"shut"}
Symphony-Node: x]]
    local n = 0
    local function fresh()
      n = n + 1
      return ("Idempotency-Key: way %d\r\n"):format(n)
    end
    local function at_socket(method, target, body, headers)
      return function(m) return m:http(method, target, body, { headers = headers and headers() }).status end
    end
    local function at_prompt(code)
      return function(m)
        local result = m:cli("lua", "-e", code)
        return result.err:find("shut refuses", 1, true) and 403 or result.code == 0 and 200 or result.err
      end
    end
    local function secure(method, target, body, headers)
      return function(m)
        local status = assert(clients.secure(m, olga, method, target, body, headers)).status
        -- What says that it was passed on is not passed on again.
        return headers and status == 503 and 403 or status
      end
    end
    local ways = {
      put = at_socket("PUT", "/v1/kv/shut/1", "new"),
      ["put if"] = at_socket("PUT", "/v1/kv/shut/2?mod_revision=0", "new"),
      ["put of bytes"] = at_socket("PUT", "/v1/kv/shut/1", "\xff\0"),
      ["put of a key that is no text"] = at_socket("PUT", "/v1/kv/shut/%ff", "new"),
      delete = at_socket("DELETE", "/v1/kv/shut/1"),
      ["put with an id"] = at_socket("PUT", "/v1/kv/shut/1", "new", fresh),
      ["delete with an id"] = at_socket("DELETE", "/v1/kv/shut/1", nil, fresh),
      txn = at_socket("POST", "/v1/txn", [[{"ops": [{"put": "shut/1", "value": "x"}]}]]),
      ["txn with others"] = at_socket("POST", "/v1/txn", other),
      ["txn with an id"] = at_socket("POST", "/v1/txn", other, fresh),
      ["txn in base64"] = at_socket("POST", "/v1/txn", [[{"ops": [{"delete_base64": "c2h1dC8x"}]}]]),
      ["put by a client"] = secure("PUT", "/v1/kv/shut/1", "new"),
      ["delete by a client"] = secure("DELETE", "/v1/kv/shut/1"),
      ["put that pretends to be passed on"] = secure("PUT", "/v1/kv/shut/1", "new", FORGED),
      ["txn that pretends to be passed on"] = secure("POST", "/v1/txn", other, FORGED),
      ["kv put"] = function(m) return m:cli("kv", "put", "shut/1", "new").code == 4 and 403 end,
      ["kv rm"] = function(m) return m:cli("kv", "rm", "shut/1").code == 4 and 403 end,
      ["the prompt's put"] = at_prompt [[kv.put("shut/1", "new")]],
      ["the prompt's submit"] = at_prompt [[local state = require "symphony.cluster.state"
        return assert(state.submit { ops = { state.put("/kv/shut/1", "new") } })]],
      ["the prompt's update"] = at_prompt [[local state = require "symphony.cluster.state"
        return assert(state.update(function() return { compare = {}, ops = { state.delete("/kv/shut/1") } }, 1 end))]],
      ["a pipeline"] = function(m)
        for i, answer in ipairs(pipeline(m, { { "PUT", "/v1/kv/open/1", "x" }, { "PUT", "/v1/kv/shut/1", "new" },
          { "PUT", "/v1/kv/open/2", "x" }, { "DELETE", "/v1/kv/shut/1" } })) do
          assert.equal(i % 2 == 1 and 200 or 403, answer[1], json.encode(answer[2]))
        end
        return 403
      end,
    }
    assert.equal(200, (put(list[1], "shut/1", "old")))
    local i = 0
    for name, way in pairs(ways) do
      for _, quick in ipairs { false, true } do -- as soon as it is set; and when it is asked without Lua
        i = i + 1
        local at, elsewhere = list[i % 3 + 1], list[(i + 1) % 3 + 1]
        set(t, at, "shut", [[return c.key:find("^shut/") and refuse("it is shut") or nil]])
        if quick then asked_in_c(elsewhere, "shut", "open/warm") end
        assert.equal(403, way(elsewhere), name)
        at:json("policy", "rm", "shut")
        assert.equal("old", json.decode(elsewhere:http("GET", "/v1/kv/shut/1").body).value, name)
        assert.equal(1, #json.decode(elsewhere:http("GET", "/v1/kv?prefix=shut/").body), name)
      end
    end
    -- Where it says which keys it is for, these are texts, as it is told.
    set(t, list[1], "shut", [[return refuse("it is shut")]],
      [[match = { ["admit.change"] = { keys = { "shut/???" } } },]])
    for _, m in ipairs(list) do
      assert.equal(403, m:http("PUT", "/v1/kv/shut/%ff", "x").status) -- shown as U+FFFD, of three bytes
    end
  end))
end)

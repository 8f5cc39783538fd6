-- The HTTP API of docs/api.md at both doors, with every kind of client: what it answers, what it refuses, what it
-- survives; and the life of the daemon around it.
local uv = require "luv"
local clients = require "spec.support.clients"
local cluster = require "spec.support.cluster"
local http = require "spec.support.http"
local json = require "spec.support.json"
local load = require "spec.support.load"
local proc = require "spec.support.proc"

-- Clients -----------------------------------------------------------------------------------------------------------

local evaluate, certificate, own, secure = clients.evaluate, clients.certificate, clients.own, clients.secure
local refused, watch, wait_lines = clients.refused, clients.watch, clients.wait_lines

-- A certificate for the key of the manager @m itself, signed as its own is, that has expired: curl's words for it, and
-- a request for a new one.
local EXPIRED = [[
local crypto, state = require "sym.crypto", require "symphony.cluster.state"
local ca_key, ca = require("symphony.cluster.pki").load_ca()
local n = state.get("/node/" .. %q)
local csr = crypto.csr(crypto.key_load(require("sym.sys").read_file(%q)), "x")
return { csr = csr, cert = crypto.cert_sign(ca_key, ca, csr, { cn = n.node_id, ou = n.role, raft_id = n.raft_node_id,
  o = state.cluster().id, not_before = os.time() - 2000, not_after = os.time() - 1000, server = true }) }]]

local function expired(t, m)
  local key = m.dir .. "/tls/node.key"
  local made = evaluate(m, EXPIRED:format(json.decode(proc.read_file(m.dir .. "/key.json")).node_id, key))
  local file = ("%s/%s-expired.crt"):format(t.root, m.label)
  proc.write_file(file, made.cert)
  return { "--cert", file, "--key", key }, made.csr
end

-- Both doors, as functions (method, target, body, headers) -> answer.
local function doors(m)
  return {
    ["the control socket"] = function(method, target, body, headers)
      return assert(m:http(method, target, body, { headers = headers, timeout = 20 * cluster.patience }))
    end,
    ["the remote port"] = function(method, target, body, headers)
      return assert(secure(m, own(m), method, target, body, headers))
    end,
  }
end

local connection = {}
connection.__index = connection

function connection:read()
  self.pipe:read_start(function(_, data)
    if data then self.pieces[#self.pieces + 1] = data else self.closed = true end
  end)
end

-- All that has come.
function connection:text()
  self.pieces = { table.concat(self.pieces) }
  return self.pieces[1]
end

function connection:send(text)
  if not self.pipe:is_closing() then
    self.pipe:write(text, function(err) self.closed = self.closed or err ~= nil end)
  end
end

function connection:close()
  if not self.pipe:is_closing() then self.pipe:close() end
end

function connection:wait(what, pattern, plain)
  cluster.wait_for(what, 10, function()
    return self:text():find(pattern, 1, plain ~= false), #self:text() .. self:text():sub(-300)
  end)
end

-- A connection to the control socket @target or the remote port of the manager @target that sends what it is told to,
-- and reads unless @deaf.
local function raw(target, deaf)
  local pipe = type(target) == "string" and uv.new_pipe(false) or uv.new_tcp()
  local self = setmetatable({ pieces = {}, pipe = pipe }, connection)
  local function opened(err)
    self.open, self.closed = not err, err ~= nil
    if not err and not deaf then self:read() end
  end
  if type(target) == "string" then
    pipe:connect(target, opened)
  else
    pipe:connect(target.address, target.remote_port, opened)
  end
  return self
end

local function request(method, target)
  return ("%s %s HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"):format(method, target)
end

local function put(m, key, value)
  local answer = assert(m:http("PUT", "/v1/kv/" .. http.escape(key), value, { timeout = 20 * cluster.patience }))
  assert.equal(200, answer.status, answer.body)
  return answer.json.revision
end

local MIB = 1 << 20

local function unbase64(text)
  return proc.run({ "base64", "-d" }, { stdin = text }).out
end

-- Keys --------------------------------------------------------------------------------------------------------------

describe("keys over HTTP", function()
  it("are put, read, listed and deleted at both doors alike", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    for door, call in pairs(doors(m)) do
      local first = call("PUT", "/v1/kv/app/a", "one").json.revision
      assert.is_true(math.type(first) == "integer" and first > 0, door)
      assert.same({ key = "app/a", value = "one", create_revision = first, mod_revision = first },
        call("GET", "/v1/kv/app/a").json)
      assert.same({ revision = first + 1 }, call("PUT", "/v1/kv/app/a", "two").json)
      assert.same({ key = "app/a", value = "two", create_revision = first, mod_revision = first + 1 },
        call("GET", "/v1/kv/app/a").json)
      assert.equal("application/json", call("GET", "/v1/kv/app/a").headers["content-type"])
      assert.same({ revision = first + 2 }, call("PUT", "/v1/kv/app/b", "").json)
      assert.equal("", call("GET", "/v1/kv/app/b").json.value)
      local list = call("GET", "/v1/kv?prefix=app/")
      assert.equal(tostring(first + 2), list.headers["x-revision"])
      assert.is_nil(list.headers["x-more"])
      assert.equal(2, #list.json)
      assert.same({ key = "app/b", value = "", create_revision = first + 2, mod_revision = first + 2 }, list.json[2])
      assert.same({ revision = first + 3 }, call("DELETE", "/v1/kv/app/b").json)
      refused(call("GET", "/v1/kv/app/b"), 404, "not_found")
      assert.equal(200, call("DELETE", "/v1/kv/app/b").status)
      call("DELETE", "/v1/kv/app/a")
      assert.same({}, call("GET", "/v1/kv?prefix=app/").json)
    end
  end))

  it("and their values may be any bytes", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local every = {}
    for i = 0, 255 do every[#every + 1] = string.char(i) end
    every = table.concat(every)
    for door, call in pairs(doors(m)) do
      call("PUT", "/v1/kv/binary", every)
      local got = call("GET", "/v1/kv/binary").json
      assert.is_nil(got.value, door)
      assert.equal(every, unbase64(got.value_base64))
      -- UTF-8 stays text, control characters and quotes included.
      local text = "žluťoučký 🐎 \"quoted\" \\ \0\1\n\t\127 \u{2028}"
      call("PUT", "/v1/kv/text", text)
      assert.equal(text, call("GET", "/v1/kv/text").json.value)
      local awkward = { "a b", "a%b", "a?b#c", "ž/🐎", "/leading", "trailing/", "a//b", "a/../b", "\"\\", "\1\127" }
      for _, key in ipairs(awkward) do
        local target = "/v1/kv/" .. key:gsub("[^%w]", function(c) return ("%%%02x"):format(c:byte()) end)
        assert.equal(200, call("PUT", target, key).status, key)
        local answer = call("GET", target).json
        assert.equal(key, answer.key, door)
        assert.equal(key, answer.value, door)
        assert.equal(key, call("GET", "/v1/kv?prefix=" .. target:sub(8)).json[1].key)
        assert.equal(200, call("DELETE", target).status)
      end
      assert.equal(200, call("PUT", "/v1/kv/%ff%fe", "x").status)
      local odd = call("GET", "/v1/kv/%FF%FE").json
      assert.is_nil(odd.key)
      assert.equal("//4=", odd.key_base64)
      for _, bad in ipairs { "/v1/kv/a%00b", "/v1/kv/a%2", "/v1/kv/a%zz" } do
        assert.equal(400, call("PUT", bad, "x").status, bad)
      end
      refused(call("GET", "/v1/kv?prefix=%zz"), 400, "invalid")
    end
  end))

  it("are listed in pages", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    for i = 1, 25 do put(m, ("p/%02d"):format(i), "v" .. i) end
    put(m, "q", "other")
    for door, call in pairs(doors(m)) do
      local seen, after, pages = {}, nil, 0
      repeat
        local page = call("GET", "/v1/kv?prefix=p/&limit=10" .. (after and "&after=" .. after or ""))
        assert.is_true(#page.json <= 10, door)
        for _, row in ipairs(page.json) do seen[#seen + 1] = row.key end
        after, pages = page.json[#page.json].key, pages + 1
      until page.headers["x-more"] ~= "true"
      assert.equal(3, pages)
      assert.equal(25, #seen)
      for i, key in ipairs(seen) do assert.equal(("p/%02d"):format(i), key) end
      assert.equal(26, #call("GET", "/v1/kv").json)
      assert.equal(26, #call("GET", "/v1/kv/").json)
      assert.equal(26, #call("GET", "/v1/kv?limit=99999999").json)
      assert.same({}, call("GET", "/v1/kv?prefix=p/&after=p/25").json)
      assert.equal("p/11", call("GET", "/v1/kv?prefix=p/&after=p/10a&limit=1").json[1].key)
      assert.equal("true", call("GET", "/v1/kv?limit=0").headers["x-more"])
      for _, bad in ipairs { "limit=", "limit=x", "limit=-1", "limit=1x", "limit=99999999999999999999" } do
        refused(call("GET", "/v1/kv?" .. bad), 400, "invalid")
      end
    end
    -- A long answer ends early and says so: nothing is lost on the way.
    for i = 1, 6 do put(m, "big/" .. i, ("%d"):format(i):rep(MIB)) end
    local seen, after = {}, ""
    repeat
      local page = assert(m:http("GET", "/v1/kv?prefix=big/&after=" .. after))
      for _, row in ipairs(page.json) do seen[#seen + 1] = row.key .. #row.value end
      assert.is_true(#page.body < 5 * MIB)
      after = page.json[#page.json].key
    until page.headers["x-more"] ~= "true"
    local want = {}
    for i = 1, 6 do want[i] = "big/" .. i .. MIB end
    assert.same(want, seen)
  end))

  it("tell their revision, and are not read behind one that the client has seen", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local seen = put(m, "a", "1")
    for door, call in pairs(doors(m)) do
      assert.equal(tostring(seen), call("GET", "/v1/kv/a").headers["x-revision"], door)
      for _, target in ipairs { "/v1/kv/a?", "/v1/kv?prefix=a&", "/v1/kv/a?stale=ok&" } do
        for _, revision in ipairs { 0, 1, seen } do
          assert.equal(200, call("GET", target .. "min_revision=" .. revision).status, target)
        end
        assert.equal(503, call("GET", target .. "min_revision=" .. seen + 1).status, target)
      end
      for _, target in ipairs { "/v1/kv/a?", "/v1/kv/absent?", "/v1/kv?", "/v1/watch?", "/v1/watch?from=1&" } do
        local answer = call("GET", target .. "min_revision=" .. seen + 1)
        refused(answer, 503, "state_unknown")
        assert.truthy(answer.json.error.message:find("has not reached revision " .. seen + 1, 1, true), answer.body)
        refused(call("GET", target .. "min_revision=-1"), 400, "invalid")
      end
      -- One that begins in the future is told of the revision that was asked for.
      local answer = call("GET", "/v1/watch?from=" .. seen + 99)
      refused(answer, 400, "invalid")
      assert.truthy(answer.json.error.message:find(("revision %d "):format(seen + 99), 1, true), answer.body)
    end
    local w = watch(m, own(m), ("/v1/watch?min_revision=%d"):format(seen))
    assert.same({ type = "sync", revision = seen }, wait_lines(w, 1)[1])
    w.process:kill()
  end))

  it("have limits, and what is over them changes nothing", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    for door, call in pairs(doors(m)) do
      local before = put(m, "before", "x")
      local longest = ("k"):rep(1024)
      assert.equal(200, call("PUT", "/v1/kv/" .. longest, "v").status, door)
      assert.equal(longest, call("GET", "/v1/kv/" .. longest).json.key)
      for _, method in ipairs { "GET", "PUT", "DELETE" } do
        refused(call(method, "/v1/kv/" .. longest .. "k", method == "PUT" and "v" or nil), 413, "too_big")
      end
      refused(call("GET", "/v1/kv?prefix=" .. longest .. "k"), 413, "too_big")
      refused(call("GET", "/v1/watch?prefix=" .. longest .. "k"), 413, "too_big")
      assert.equal(200, call("PUT", "/v1/kv/value", ("v"):rep(MIB)).status)
      assert.equal(MIB, #call("GET", "/v1/kv/value").json.value)
      refused(call("PUT", "/v1/kv/value", ("w"):rep(MIB + 1)), 413, "too_big")
      refused(call("PUT", "/v1/kv/value", ("w"):rep(2 * MIB + 1)), 413, "too_big")
      refused(call("GET", "/v1/kv/value", nil, "X-Long: " .. ("h"):rep(16 * 1024) .. "\r\n"), 431, "too_big")
      assert.equal("v", call("GET", "/v1/kv/value").json.value:sub(-1))
      assert.equal(before + 3, put(m, "after", "x"))
    end
  end))

  it("of the largest txn fit into a request, whatever bytes they are", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local half = ("\255\0\1\128"):rep(MIB * 3 // 4 // 4 - 64)
    local coded = proc.run({ "base64", "-w0" }, { stdin = half }).out
    local compares, key = {}, ("k"):rep(300)
    for i = 1, 128 do compares[i] = ('{"key":"%s%d","absent":true}'):format(key, i) end
    local body = ('{"compare":[%s],"ops":[{"put":"a","value_base64":"%s"},{"put":"b","value_base64":"%s"}]}')
    for door, call in pairs(doors(m)) do
      local answer = call("POST", "/v1/txn", body:format("", coded, coded))
      assert.equal(200, answer.status, door .. answer.body)
      assert.is_true(half == unbase64(call("GET", "/v1/kv/b").json.value_base64))
      -- Too much for a txn is told so by whoever knows the limits of txns.
      answer = call("POST", "/v1/txn", body:format(table.concat(compares, ","), coded, coded))
      refused(answer, 413, "too_big")
      assert.truthy(answer.json.error.message:find("1.5 MiB", 1, true), answer.body)
      refused(call("POST", "/v1/txn", (" "):rep(3 * MIB + 1)), 413, "too_big")
    end
    -- Who may not write may not send much either.
    for _, who in ipairs { {}, certificate(t, m, { cn = "r", ou = "reader" }) } do
      refused(assert(secure(m, who, "POST", "/v1/txn", (" "):rep(64 << 10))), #who == 0 and 401 or 403,
        #who == 0 and "unauthenticated" or "denied")
      refused(assert(secure(m, who, "POST", "/v1/txn", (" "):rep((64 << 10) + 1))), 413, "too_big")
    end
  end))

  it("are gone through by a txn's compares of prefixes only so far", cluster.scenario(function(t)
    local managers = t:cluster(3)
    local ops, compares = {}, {}
    for i = 1, 100 do ops[i] = ('{"put":"many/%03d","value":"v"}'):format(i) end
    for i = 1, 128 do compares[i] = '{"prefix":"many/","revision":1000000000}' end
    local function body(n, last)
      local list = table.move(compares, 1, n, 1, {})
      list[#list + 1] = last
      return ('{"compare":[%s],"ops":[{"put":"done","value":"x"}]}'):format(table.concat(list, ","))
    end
    local function txn(m, n, last)
      return assert(m:http("POST", "/v1/txn", body(n, last), { timeout = 20 * cluster.patience }))
    end
    local filled = assert(managers[1]:http("POST", "/v1/txn", ('{"ops":[%s]}'):format(table.concat(ops, ","))))
    assert.equal(200, filled.status, filled.body)
    -- At the leader and at those that pass it on.
    for _, m in ipairs(managers) do
      local answer = txn(m, 128)
      refused(answer, 413, "too_big")
      assert.truthy(answer.json.error.message:find("10000 keys", 1, true), answer.body)
      assert.truthy(answer.json.error.hint, answer.body)
      refused(txn(m, 99, '{"prefix":"many/","count":1}'), 413, "too_big")
      assert.equal(404, m:http("GET", "/v1/kv/done").status)
      assert.equal(200, txn(m, 99).status) -- each of them, and its 100 keys: 9,999
      refused(txn(m, 98, '{"prefix":"many/","count":99}'), 409, "conflict")
      assert.equal(200, m:http("DELETE", "/v1/kv/done").status)
    end
    -- Many at once are each refused as one is, and do not stop the others.
    local attackers, text = {}, body(128)
    for i = 1, 40 do
      attackers[i] = raw(managers[i % 3 + 1].socket)
      attackers[i]:send(("POST /v1/txn HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"):format(#text) .. text)
    end
    for _, m in ipairs(managers) do put(m, "between", "x") end
    for _, c in ipairs(attackers) do
      c:wait("a refusal", '"code":"too_big"')
      c:close()
    end
  end))

  it("change only as a condition allows", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    for _, call in pairs(doors(m)) do
      local made = call("PUT", "/v1/kv/c?mod_revision=0", "1").json.revision
      refused(call("PUT", "/v1/kv/c?mod_revision=0", "2"), 409, "conflict")
      refused(call("PUT", "/v1/kv/c?mod_revision=" .. made - 1, "2"), 409, "conflict")
      local changed = call("PUT", "/v1/kv/c?mod_revision=" .. made, "2").json.revision
      assert.equal(made + 1, changed)
      refused(call("DELETE", "/v1/kv/c?mod_revision=" .. made), 409, "conflict")
      for _, bad in ipairs { "", "x", "-1", "1.5", ("9"):rep(19), "18446744073709551616" } do
        refused(call("PUT", "/v1/kv/c?mod_revision=" .. bad, "3"), 400, "invalid")
      end
      assert.equal("2", call("GET", "/v1/kv/c").json.value)
      assert.equal(200, call("DELETE", "/v1/kv/c?mod_revision=" .. changed).status)
      refused(call("DELETE", "/v1/kv/c?mod_revision=" .. changed), 409, "conflict")
    end
  end))

  it("are written once under one Idempotency-Key, at whatever manager", cluster.scenario(function(t)
    local list = t:cluster(3)
    local key = "Idempotency-Key: order 66 ž\r\n"
    local first = put(list[1], "count", "0")
    for i, m in ipairs(list) do
      local n = 0
      for _, call in pairs(doors(m)) do
        n = n + 1
        local answer = call("PUT", "/v1/kv/once", "value", key .. "Idempotency-Since: " .. first .. "\r\n")
        assert.equal(first + 1, answer.json.revision, answer.body)
        if i == 1 and n == 1 then assert.is_nil(answer.json.repeated) else assert.is_true(answer.json.repeated) end
      end
    end
    assert.equal("value", list[3]:http("GET", "/v1/kv/once").json.value)
    -- Under the same key another request is another one.
    local since = key .. "Idempotency-Since: " .. first .. "\r\n"
    assert.same({ revision = first + 2 }, list[2]:http("PUT", "/v1/kv/once", "other", { headers = since }).json)
    assert.same({ revision = first + 3 }, list[2]:http("PUT", "/v1/kv/twice", "value", { headers = since }).json)
    assert.same({ revision = first + 4 }, list[1]:http("DELETE", "/v1/kv/once", nil, { headers = since }).json)
    local again = list[3]:http("DELETE", "/v1/kv/once", nil, { headers = since }).json
    assert.same({ revision = first + 4, repeated = true }, again)
    for _, bad in ipairs { "Idempotency-Key:\r\n", ("Idempotency-Key: %s\r\n"):format(("k"):rep(257)),
      "Idempotency-Key: a\r\nIdempotency-Since: soon\r\n", "Idempotency-Key: a\r\nIdempotency-Since: -1\r\n" } do
      refused(list[1]:http("PUT", "/v1/kv/never", "x", { headers = bad }), 400, "invalid")
    end
    -- A revision has at most 18 digits, here and there.
    for _, call in ipairs { { "PUT", "/v1/kv/long", "x" }, { "POST", "/v1/txn", [[{"ops": [{"delete": "long"}]}]] } } do
      local function say(digits)
        local headers = ("Idempotency-Key: long\r\nIdempotency-Since: %s\r\n"):format(("9"):rep(digits))
        return list[1]:http(call[1], call[2], call[3], { headers = headers })
      end
      assert.equal(200, say(18).status, call[1])
      refused(say(19), 400, "invalid")
    end
    refused(list[1]:http("GET", "/v1/kv/never"), 404, "not_found")
  end))

  it("know their methods", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    put(m, "here", "value")
    for door, call in pairs(doors(m)) do
      for _, case in ipairs { { "POST", "/v1/kv/a", "GET, HEAD, PUT, DELETE" }, { "PATCH", "/v1/kv/a" },
        { "PUT", "/v1/kv", "GET, HEAD" }, { "DELETE", "/v1/kv/", "GET, HEAD" }, { "PUT", "/v1/watch", "GET" },
        { "POST", "/healthz", "GET, HEAD" } } do
        local answer = call(case[1], case[2], "x")
        refused(answer, 405, "invalid")
        assert.equal(case[3] or answer.headers.allow, answer.headers.allow, door .. case[1] .. case[2])
      end
      assert.equal(404, call("GET", "/v1/kvs").status)
      assert.equal(404, call("GET", "/v1/watches").status)
      assert.same({ ok = true }, call("GET", "/healthz").json)
    end
    -- HEAD is GET without the body, and the connection goes on.
    local conn = raw(m.socket)
    conn:send(request("HEAD", "/v1/kv/here") .. request("HEAD", "/v1/kv") .. request("HEAD", "/v1/kv/nowhere")
      .. request("GET", "/v1/kv/here"))
    conn:wait("four answers", '"value":"value"')
    conn:close()
    local statuses, text = {}, conn:text()
    for status in text:gmatch("HTTP/1.1 (%d+)") do statuses[#statuses + 1] = status end
    assert.same({ "200", "200", "404", "200" }, statuses)
    assert.equal(1, select(2, text:gsub("{", "{")), text)
    assert.equal(text:match("Content%-Length: (%d+)"), text:match(".*Content%-Length: (%d+)"))
    assert.equal(200, secure(m, own(m), "HEAD", "/v1/kv/here").status)
  end))
end)

-- Who may -----------------------------------------------------------------------------------------------------------

local EVERY = { { "GET", "/v1/kv/a" }, { "GET", "/v1/kv" }, { "GET", "/v1/watch" }, { "PUT", "/v1/kv/a", "v" },
  { "DELETE", "/v1/kv/a" }, { "GET", "/metrics" } }

describe("a certificate", function()
  it("decides what its owner may do", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    put(m, "a", "v")
    local function all(who, status, code)
      for _, case in ipairs(EVERY) do
        local answer = assert(secure(m, who, table.unpack(case)))
        refused(answer, status, code)
      end
    end
    all({}, 401, "unauthenticated")
    assert.equal(200, secure(m, {}, "GET", "/healthz").status)
    all(certificate(t, m, { cn = "w", ou = "worker" }), 403, "denied")
    all(certificate(t, m, { cn = "x", ou = "nobody" }), 403, "denied")
    all(certificate(t, m, { cn = "o", ou = "operator", from = -1000, to = -10 }), 403, "expired")
    all(certificate(t, m, { cn = "o", ou = "operator", from = 500, to = 1000 }), 403, "expired")
    all(certificate(t, m, { cn = "stranger", ou = "manager" }), 403, "denied")
    -- The CA's signature alone does not make a client, and neither does the name of one.
    all(certificate(t, m, { cn = "nobody", ou = "operator", unknown = true }), 403, "denied")
    certificate(t, m, { cn = "o", ou = "operator" })
    all(certificate(t, m, { cn = "o", ou = "operator", unknown = true }), 403, "denied")
    -- A member's name with another key than the member's.
    local name = json.decode(proc.read_file(m.dir .. "/key.json")).node_id
    all(certificate(t, m, { cn = name, ou = "manager" }), 403, "denied")
    local operator = certificate(t, m, { cn = "o", ou = "operator" })
    assert.equal(200, secure(m, operator, "PUT", "/v1/kv/a", "o").status)
    assert.equal("o", secure(m, operator, "GET", "/v1/kv/a").json.value)
    local reader = certificate(t, m, { cn = "r", ou = "reader" })
    assert.equal("o", secure(m, reader, "GET", "/v1/kv/a").json.value)
    assert.equal(1, #secure(m, reader, "GET", "/v1/kv").json)
    for _, who in ipairs { operator, reader } do
      assert.truthy(assert(secure(m, who, "GET", "/metrics")).body:find("\nsymphony_raft_term ", 1, true))
    end
    refused(assert(secure(m, reader, "PUT", "/v1/kv/a", "r")), 403, "denied")
    refused(assert(secure(m, reader, "DELETE", "/v1/kv/a")), 403, "denied")
    local w = watch(m, reader, "/v1/watch")
    wait_lines(w, 1)
    w.process:kill()
    assert.equal("o", secure(m, own(m), "GET", "/v1/kv/a").json.value)
    -- Of another CA, or of none: no request is even read.
    local foreign = t:manager():start()
    foreign:json("manager", "init")
    assert.is_nil((secure(m, own(foreign), "GET", "/healthz")))
    proc.run { "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days",
      "2", "-subj", "/OU=operator/CN=o", "-keyout", t.root .. "/self.key", "-out", t.root .. "/self.crt" }
    assert.is_nil((secure(m, { "--cert", t.root .. "/self.crt", "--key", t.root .. "/self.key" }, "GET", "/healthz")))
  end))

  it("that expires is worth nothing from then on, also in a connection that is open", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local who = certificate(t, m, { cn = "o", ou = "operator", to = 5 })
    local busy, idle = watch(m, who, "/v1/watch?prefix=b"), watch(m, who, "/v1/watch?prefix=i")
    local client = proc.begin({ "openssl", "s_client", "-quiet", "-connect", m:remote(), "-CAfile",
      m.dir .. "/tls/ca.crt", "-cert", who[2], "-key", who[4] }, { hold_stdin = true })
    wait_lines(busy, 1)
    wait_lines(idle, 1)
    cluster.wait_for("a read and a status to be refused in an open connection", 20, function()
      client.stdin:write("GET /v1/kv?prefix=b HTTP/1.1\r\nHost: x\r\n\r\nGET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
      put(m, "b", "x")
      local _, refusals = client.out:gsub("403 Forbidden", "")
      return refusals >= 2, client.out:sub(-300) .. client.err
    end)
    assert.truthy(client.out:find("200 OK.*403 Forbidden"), client.out)
    assert.is_nil(client.out:find("403 Forbidden.*200 OK"), client.out)
    for code in client.out:gmatch('"code":"(.-)"') do assert.equal("expired", code) end
    client.stdin:close()
    for _, w in ipairs { busy, idle } do
      local function last() return w.lines()[#w.lines()] end
      cluster.wait_for("the end of a watch", 20, function() return last().error, w.out end)
      assert.equal("expired", last().error.code)
      w.process:kill()
    end
    assert.is_true(#busy.lines() > 2, busy.out)
  end))

  it("that has expired is good for a new one, and for nothing else", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    put(m, "a", "v")
    local old, csr = expired(t, m)
    for _, case in ipairs(EVERY) do refused(assert(secure(m, old, table.unpack(case))), 403, "expired") end
    for _, case in ipairs { { "GET", "/v1/status" }, { "GET", "/v1/members" }, { "GET", "/v1/nodes" },
      { "POST", "/v1/txn", "{}" }, { "POST", "/v1/transfer", "{}" }, { "POST", "/v1/join", "{}" },
      { "GET", "/v1/backup" }, { "POST", "/v1/restore/begin", "{}" }, { "POST", "/v1/nodes/1/remove", "{}" } } do
      refused(assert(secure(m, old, table.unpack(case))), 403, "expired")
    end
    local answer = assert(secure(m, old, "POST", "/v1/renew", json.encode { csr = csr }))
    assert.equal(200, answer.status, answer.body)
    assert.is_true(answer.json.expires > os.time() + 80 * 86400, answer.body)
    proc.write_file(old[2], answer.json.certificate)
    assert.equal(200, secure(m, old, "GET", "/v1/kv/a").status)
    -- Not for another's key, and not without a certificate.
    local other = evaluate(m, "local c = require 'sym.crypto' return { csr = c.csr(c.key_generate(), 'x') }")
    refused(assert(secure(m, old, "POST", "/v1/renew", json.encode(other))), 403, "denied")
    refused(assert(secure(m, {}, "POST", "/v1/renew", json.encode { csr = csr })), 401, "unauthenticated")
  end))

  it("that has expired at every manager keeps none of them from the others: they renew", cluster.scenario(function(t)
    local m = t:cluster(3)
    put(m[1], "a", "v")
    local files = {}
    for i, each in ipairs(m) do files[i] = proc.read_file(expired(t, each)[2]) end
    for i, each in ipairs(m) do
      each:stop()
      proc.write_file(each.dir .. "/tls/node.crt", files[i])
    end
    for _, each in ipairs(m) do each:start() end
    t:wait_voters(3, m[1])
    for i, each in ipairs(m) do
      assert.equal("v", each:json("kv", "get", "a").value)
      cluster.wait_for(each.label .. " to renew its certificate", 20, function()
        local file = each.dir .. "/tls/node.crt"
        return proc.read_file(file) ~= files[i]
          and proc.run({ "openssl", "x509", "-noout", "-checkend", "86400", "-in", file }).code == 0, each:log_tail(3)
      end)
      cluster.wait_for("it to serve with that", 10, function()
        local answer, why = secure(each, own(each), "GET", "/v1/kv/a")
        return answer and answer.status == 200, why or answer.body
      end)
    end
    put(m[2], "a", "w")
  end))

  it("of a removed manager is worth nothing, at once and at every manager", cluster.scenario(function(t)
    local list = t:cluster(3)
    local leader, others = t:leader()
    local gone, stays = others[1], others[2]
    local who = own(gone)
    local watches = { watch(leader, who, "/v1/watch"), watch(stays, who, "/v1/watch?prefix=a") }
    for _, w in ipairs(watches) do wait_lines(w, 1) end
    assert.equal(200, secure(stays, who, "PUT", "/v1/kv/a", "1").status)
    leader:json("manager", "remove", gone:member(gone).node_id)
    for _, w in ipairs(watches) do
      cluster.wait_for("its watch to be cut", 10, w.ended)
    end
    for _, m in ipairs { leader, stays } do
      for _, case in ipairs(EVERY) do refused(assert(secure(m, who, table.unpack(case))), 403, "denied") end
    end
    assert.equal("1", stays:http("GET", "/v1/kv/a").json.value)
    -- On the removed one itself nothing of the cluster is served any more.
    cluster.wait_for("it to stop serving", 15, function()
      local answer = gone:http("GET", "/v1/kv/a")
      return answer and answer.status == 503 and answer.json.error.code == "closed", answer and answer.body
    end)
    assert.equal(3, #list)
  end))

  it("is renewed for its own key, at every manager", cluster.scenario(function(t)
    local m = t:cluster(2)
    local csr = {}
    for i = 1, 2 do
      csr[i] = evaluate(m[i], [[
        local tls = require "symphony.cluster.identity".tls
        return { csr = require "sym.crypto".csr(tls.key, "x") }]])
    end
    for i = 1, 2 do
      for _, at in ipairs(m) do
        local answer = assert(secure(at, own(m[i]), "POST", "/v1/renew", json.encode(csr[i])))
        assert.equal(200, answer.status, answer.body)
        assert.truthy(answer.json.certificate:find("BEGIN CERTIFICATE", 1, true))
        answer = assert(secure(at, own(m[i]), "POST", "/v1/renew", json.encode(csr[3 - i])))
        assert.same({ 403, "denied" }, { answer.status, answer.json.error.code })
      end
    end
  end))
end)

-- Certificate requests that the key of the daemon has signed: one that says nothing, and some that say when and where.
local REQUESTS = [[
local crypto, tls = require "sym.crypto", require "symphony.cluster.identity".tls
local function says(seconds, ca)
  return crypto.csr(tls.key, ("%010d-%s"):format(os.time() + seconds, crypto.base36(ca)))
end
local ca = crypto.unhex(crypto.cert_info(tls.ca).digest)
return { nothing = crypto.csr(tls.key, "host"), old = says(-3700, ca), early = says(3700, ca), fresh = says(0, ca),
  other = says(0, crypto.sha256("x")), fingerprint = tls.key:fingerprint() }]]

describe("a request to join with the key of a member", function()
  it("takes nothing from it while it is down, and gets no secret, unless it has a token", cluster.scenario(function(t)
    local m = t:cluster(3)
    local leader, others = t:leader()
    local victim = others[1]
    local id = victim:member().raft_node_id
    local csr = evaluate(victim, REQUESTS)
    victim:crash()
    cluster.wait_for("it to be missed", 15, function() return leader:member(victim).reachable == false end)
    local function ask(at, which, token)
      local answer = assert(secure(at, nil, "POST", "/v1/join", json.encode { role = "manager", csr = csr[which],
        name = "other", addresses = { raft = "127.0.0.1:1", remote = "127.0.0.1:2", gossip = "127.0.0.1:3" },
        token = token }))
      assert.is_nil(answer.json.gossip_keys, which)
      return answer.status, answer.json.error and answer.json.error.code or answer.json.pending.fingerprint
    end
    for _, at in ipairs { leader, others[2] } do
      assert.same({ 400, "invalid" }, { ask(at, "nothing") })
      for _, which in ipairs { "old", "early", "other" } do assert.same({ 403, "denied" }, { ask(at, which) }) end
      assert.same({ 403, "denied" }, { ask(at, "fresh", t.tokens.worker) })
      assert.same({ 202, csr.fingerprint }, { ask(at, "fresh") })
      assert.same({ 403, "denied" }, { ask(at, "old", t.tokens.manager) })
    end
    local waiting = leader:json("node", "pending")
    assert.equal(1, #waiting)
    assert.equal(id, waiting[1].replaces)
    leader:json("node", "reject", waiting[1].id)
    victim:start()
    cluster.wait_for("it to be back as what it was", 20, function()
      local row = leader:member(victim)
      return row and row.raft_node_id == id and row.raft_role == "voter" and row.reachable, row
    end)
    assert.equal(3, #m[1]:json("manager", "members"))
  end))
end)

-- Watches -----------------------------------------------------------------------------------------------------------

local function types(lines)
  local list = {}
  for i, line in ipairs(lines) do list[i] = line.type .. (line.key and ":" .. line.key or "") end
  return table.concat(list, " ")
end

describe("a watch", function()
  it("tells what changes below its prefix, from where it is asked to", cluster.scenario(function(t)
    local m = t:cluster(3)[2]
    local first = put(m, "w/a", "1")
    put(m, "other", "x")
    put(m, "w/b", "\255")
    local now = watch(m, own(m), "/v1/watch?prefix=w/")
    local old = watch(m, own(m), "/v1/watch?prefix=w/&from=" .. first)
    local all = watch(m, own(m), "/v1/watch?from=" .. first + 1)
    assert.equal("sync", wait_lines(now, 1)[1].type)
    wait_lines(old, 3)
    wait_lines(all, 3)
    put(m, "w/a", "2")
    assert.equal(200, m:http("DELETE", "/v1/kv/w/b").status)
    put(m, "v", "x")
    local lines = wait_lines(now, 3)
    assert.same({ type = "sync", revision = first + 2 }, lines[1])
    assert.same({ type = "put", key = "w/a", value = "2", create_revision = first, revision = first + 3 }, lines[2])
    assert.same({ type = "delete", key = "w/b", revision = first + 4 }, lines[3])
    -- The old ones come first, then it is told that these were all.
    lines = wait_lines(old, 5)
    assert.equal("put:w/a put:w/b sync put:w/a delete:w/b", types(lines))
    assert.equal("/w==", lines[2].value_base64)
    assert.is_true(lines[3].revision >= first + 2)
    assert.equal("put:other put:w/b sync put:w/a delete:w/b put:v", types(wait_lines(all, 6)))
    for _, w in ipairs { now, old, all } do w.process:kill() end
    refused(m:http("GET", "/v1/watch?from=" .. first + 1000), 400, "invalid")
    refused(m:http("GET", "/v1/watch?from=x"), 400, "invalid")
  end))

  it("says that the line is alive, and never more than it has told", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local w = watch(m, own(m), "/v1/watch?prefix=quiet/")
    local last = put(m, "loud", "x")
    cluster.wait_for("a heartbeat", 15, function()
      local lines = w.lines()
      return lines[#lines] and lines[#lines].type == "heartbeat" and lines[#lines].revision == last, w.out
    end)
    w.process:kill()
  end))

  it("of what is history no more says compacted", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local first = put(m, "start", "x")
    for i = 1, 12 do put(m, "big", (i % 10 .. ""):rep(MIB)) end
    local answer = m:http("GET", "/v1/watch?from=" .. first)
    refused(answer, 410, "compacted")
    assert.truthy(answer.json.error.hint:find("list", 1, true))
    local w = watch(m, own(m), "/v1/watch?from=" .. first + 12)
    assert.equal("put:big sync", types(wait_lines(w, 2)))
    w.process:kill()
  end))

  it("that is not read holds up nobody and is told that it missed something", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local slow = raw(m.socket, true)
    slow:send(request("GET", "/v1/watch"))
    local quick = watch(m, own(m), "/v1/watch?prefix=done")
    wait_lines(quick, 1)
    for i = 1, 24 do put(m, "big", (i % 10 .. ""):rep(MIB)) end
    put(m, "done", "x")
    wait_lines(quick, 2)
    quick.process:kill()
    slow:read()
    slow:wait("the slow one's end", '"code":"compacted"')
    assert.is_true(#slow:text() < 20 * MIB, #slow:text() .. " bytes were kept for it")
    slow:wait("the connection to be good again", "\r\n0\r\n\r\n$", false)
    slow:send(request("GET", "/healthz"))
    slow:wait("its next answer", '"ok":true')
    slow:close()
  end))

  it("by a command that is not read is given up, and what waits is let go", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local slow = raw(m.socket, true)
    local body = '{"argv":["--json","kv","watch"]}'
    slow:send(("POST /v1/command HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"):format(#body, body))
    local marks = watch(m, own(m), "/v1/watch?prefix=mark")
    wait_lines(marks, 1)
    for i = 1, 32 do put(m, "big", (i % 10 .. ""):rep(MIB)) end
    put(m, "mark", "x")
    wait_lines(marks, 2)
    marks.process:kill()
    slow:read()
    slow:wait("its end", '{"exit":1}')
    assert.truthy(slow:text():find("busy", 1, true))
    assert.is_true(#slow:text() < 8 * MIB, #slow:text() .. " bytes were kept for it")
    slow:close()
  end))

  it("of many sees everything in order while others come and go", cluster.scenario(function(t)
    local list = t:cluster(3)
    local watches, passing = {}, {}
    for i = 1, 30 do
      watches[i] = raw(list[i % 3 + 1].socket)
      watches[i]:send(request("GET", "/v1/watch?prefix=load/"))
    end
    for _, w in ipairs(watches) do w:wait("sync", "sync") end
    local writers = load.start(list, 6)
    for _ = 1, 20 do
      for i = 1, 10 do
        passing[i] = raw(list[i % 3 + 1].socket)
        passing[i]:send(request("GET", "/v1/watch?prefix=load/0" .. i % 7))
      end
      proc.run_for(0.02)
      for _, w in ipairs(passing) do w:close() end
    end
    writers:stop()
    local last = put(list[1], "load/last", "x")
    for _, w in ipairs(watches) do
      w:wait("the last change", '"load/last"')
      local before, n = 0, 0
      for revision in w:text():gmatch('"type":"put"[^\n]-"revision":(%d+)}\n') do
        revision = tonumber(revision)
        assert.is_true(revision > before, "out of order")
        before, n = revision, n + 1
      end
      assert.equal(last, before)
      assert.equal(writers.count + 1, n)
      w:close()
    end
  end))
end)

-- Without a quorum --------------------------------------------------------------------------------------------------

describe("one manager of three", function()
  it("answers within two seconds, from its own state if that is wanted", cluster.scenario(function(t)
    local list = t:cluster(3)
    put(list[1], "a", "1")
    put(list[1], "b", "2")
    for i = 2, 3 do
      cluster.wait_for("everyone to have it", 5, function()
        return list[i]:http("GET", "/v1/kv/b").status == 200
      end)
      list[i]:crash()
    end
    local m = list[1]
    local function timed(limit, ...)
      local began = proc.now()
      local answer = assert(m:http(...))
      local seconds = proc.now() - began
      assert.is_true(seconds < limit * cluster.patience, ("it took %.1f s"):format(seconds))
      return answer
    end
    for _, target in ipairs { "/v1/kv/a", "/v1/kv?prefix=", "/v1/watch", "/v1/watch?stale=ok", "/v1/kv/a?stale=no" } do
      refused(timed(2, "GET", target), 503, "no_quorum")
    end
    local one = timed(2, "GET", "/v1/kv/a?stale=ok").json
    assert.equal("1", one.value)
    assert.is_true(one.stale)
    assert.equal("no_quorum", one.reason)
    assert.equal("integer", math.type(one.age_ms))
    assert.equal("integer", math.type(one.revision))
    local rows = timed(2, "GET", "/v1/kv?stale=ok").json
    assert.equal(2, #rows)
    for _, row in ipairs(rows) do assert.is_true(row.stale) end
    refused(timed(2, "GET", "/v1/kv/c?stale=ok"), 404, "not_found")
    local write = timed(5, "PUT", "/v1/kv/a", "2")
    refused(write, 503, "no_quorum")
    assert.truthy(write.json.error.hint:find("`symphony manager recover`", 1, true), write.body)
    refused(assert(secure(m, own(m), "GET", "/v1/kv/a")), 503, "no_quorum")
    assert.is_true(secure(m, own(m), "GET", "/v1/kv/a?stale=ok").json.stale)
    -- Also after a restart, when it does not know how old its state is.
    m:stop()
    m:start()
    cluster.wait_for("its state", 10, function()
      local answer = m:http("GET", "/v1/kv/a?stale=ok")
      return answer and answer.status == 200 and answer.json.stale and answer.json.age_ms == json.null,
        answer and answer.body
    end)
    list[2]:start()
    cluster.wait_for("a quorum", 15, function()
      local answer = m:http("GET", "/v1/kv/a")
      return answer and answer.status == 200 and answer.json.stale == nil, answer and answer.body
    end)
    local seen = put(m, "a", "3")
    -- One that was away lags: it says so to whoever has seen more.
    m:crash()
    list[2]:crash()
    list[3]:start()
    cluster.wait_for("an old state", 10, function()
      local answer = list[3]:http("GET", "/v1/kv/a?stale=ok")
      return answer and answer.status == 200 and answer.json.value == "1", answer and answer.body
    end)
    for _, target in ipairs { "/v1/kv/a?", "/v1/kv?", "/v1/kv/c?" } do
      local answer = assert(list[3]:http("GET", target .. "stale=ok&min_revision=" .. seen))
      refused(answer, 503, "state_unknown")
      assert.truthy(answer.json.error.message:find("behind revision " .. seen, 1, true), answer.body)
      assert.truthy(answer.json.error.hint:find("another manager", 1, true), answer.body)
    end
  end))
end)

-- Hostile peers -----------------------------------------------------------------------------------------------------

describe("a thousand slow connections", function()
  it("do not keep others from working", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local conns = {}
    local long = ("GET /v1/kv/load HTTP/1.1\r\nHost: localhost\r\nX-Long: %s\r\n\r\n"):format(("x"):rep(500))
    local hello = "\22\3\1\2\0\1\0\1\252\3\3" .. ("r"):rep(500)
    for i = 1, 1000 do
      local tls = i % 2 == 0
      conns[i] = raw(tls and m or m.socket)
      conns[i].bytes = tls and hello or long
      if i % 100 == 0 then proc.run_for(0.01) end
    end
    cluster.wait_for("them to be connected", 20, function()
      local open = 0
      for _, c in ipairs(conns) do open = open + (c.open and 1 or 0) end
      return open == #conns, open
    end)
    local writers = load.start({ m }, 8)
    for at = 1, 20 do
      for _, c in ipairs(conns) do
        if not c.closed then c:send(c.bytes:sub(at, at)) end
      end
      proc.run_for(0.1)
    end
    writers:wait_progress(5 * cluster.patience)
    local began = proc.now()
    assert.equal(200, secure(m, own(m), "PUT", "/v1/kv/a", "b").status)
    assert.equal("b", secure(m, own(m), "GET", "/v1/kv/a").json.value)
    assert.equal(0, m:cli("kv", "get", "a").code)
    assert.is_true(proc.now() - began < 5 * cluster.patience, "it took " .. proc.now() - began)
    -- None of them stays for ever: who has not finished its head in ten seconds is told so, or just cut.
    cluster.wait_for("them to be cut off", 20, function()
      local left = 0
      for _, c in ipairs(conns) do left = left + (c.closed and 0 or 1) end
      return left == 0, left
    end)
    for i, c in ipairs(conns) do
      if i % 2 == 1 then assert.truthy(c:text():find("^HTTP/1.1 408"), c:text()) end
      c:close()
    end
    writers:wait_progress(5 * cluster.patience)
    writers:stop()
    assert.equal(0, writers.errors, writers.last_error)
  end))
end)

describe("garbage", function()
  it("at either door ends that connection and nothing else", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local noise = {}
    for i = 1, 4096 do noise[i] = string.char(math.random(0, 255)) end
    noise = table.concat(noise)
    local pieces = {
      noise, ("\0"):rep(70000), "GET / HTTP/1.1\r\n\r\n", "\22\3\1\255\255" .. noise, "\21\3\3\0\2\2\40",
      "\22\3\1\0\5\1\255\255\255\0", "SSH-2.0-OpenSSH_9.2\r\n", "\r\n\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
      "GET /v1/kv/a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
      "GET /v1/kv/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
      "PUT /v1/kv/a HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
      "PUT /v1/kv/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
      ("GET /v1/kv/a HTTP/1.1\r\n%s\r\n"):format(("A: b\r\n"):rep(2000)), "GET " .. ("/"):rep(20000),
    }
    local conns = {}
    for _, piece in ipairs(pieces) do
      for _, target in ipairs { m, m.socket } do
        local c = raw(target)
        conns[#conns + 1] = c
        c.piece, c.plain = piece, target == m.socket
        c:send(piece)
      end
    end
    for _, c in ipairs(conns) do
      cluster.wait_for("the end of " .. c.piece:sub(1, 30), 40, function() return c.closed, c:text() end)
      if c.plain then assert.truthy(c:text():find("^HTTP/1.1 [45]") or c:text() == "", c:text()) end
      c:close()
    end
    assert.equal(200, secure(m, own(m), "PUT", "/v1/kv/a", "b").status)
    assert.equal("b", m:http("GET", "/v1/kv/a").json.value)
  end))
end)

-- The daemon's life -------------------------------------------------------------------------------------------------

describe("a daemon", function()
  it("can leave and make a cluster again, with clients at both doors", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    for round = 1, 4 do
      put(m, "round", tostring(round))
      local remote = watch(m, own(m), "/v1/watch")
      wait_lines(remote, 1)
      local watches, busy = {}, {}
      for i = 1, 10 do
        watches[i] = raw(m.socket)
        watches[i]:send(request("GET", "/v1/watch"))
      end
      for _, w in ipairs(watches) do w:wait("sync", "sync") end
      local leave = proc.begin({ cluster.symphony, "--socket", m.socket, "manager", "leave", "--force" }, {})
      -- Requests come in at every moment of it; each is answered, if only with an error.
      cluster.wait_for("the end of leave", 20, function()
        for _, asked in ipairs { { "GET", "/v1/kv/round" }, { "PUT", "/v1/kv/round" }, { "GET", "/v1/watch" },
          { "GET", "/v1/status" } } do
          local c = raw(m.socket)
          busy[#busy + 1] = c
          c:send(request(table.unpack(asked)))
        end
        return leave.ended()
      end)
      assert.equal(0, leave.process.code, leave.out .. leave.err)
      cluster.wait_for("the remote watch to end", 10, remote.ended)
      for _, w in ipairs(watches) do
        w:wait("the watch's end", '"code":"closed"')
        w:send(request("GET", "/healthz"))
        w:wait("its next answer", '"ok":true')
        w:close()
      end
      for _, c in ipairs(busy) do
        c:wait("an answer", "{.*}", false)
        c:close()
      end
      refused(m:http("GET", "/v1/kv/round"), 503, "closed")
      refused(m:http("PUT", "/v1/kv/round", "x"), 503, "closed")
      refused(m:http("GET", "/v1/watch"), 503, "closed")
      assert.is_true(proc.port_is_free(m.remote_port))
      m:json("manager", "init")
      refused(m:http("GET", "/v1/kv/round"), 404, "not_found")
    end
  end))

  it("ends at SIGTERM, said once or twice, whatever it is doing", cluster.scenario(function(t)
    -- With watches, a list on its way to one who does not read, and a backup being made.
    local m = t:cluster(1)[1]
    for i = 1, 20 do put(m, "big/" .. i, ("x"):rep(MIB)) end
    local slow = raw(m.socket, true)
    for _ = 1, 20 do slow:send(request("GET", "/v1/kv?prefix=big/")) end
    local remote = watch(m, own(m), "/v1/watch")
    wait_lines(remote, 1)
    local backup = proc.begin({ cluster.symphony, "--socket", m.socket, "cluster", "backup", t.root .. "/backup" }, {})
    proc.run_for(0.05)
    m:kill("sigterm")
    m:kill("sigterm")
    assert.equal(0, m:stop())
    slow:close()
    cluster.wait_for("the backup's end", 10, backup.ended)
    cluster.wait_for("the watch's end", 10, remote.ended)
    m:start()
    assert.equal(MIB, #m:http("GET", "/v1/kv/big/1").json.value)

    -- While it joins something that does not answer; nothing is left of that.
    local mute = uv.new_tcp()
    assert(mute:bind("127.0.0.1", 0))
    assert(mute:listen(8, function()
      local peer = uv.new_tcp()
      mute:accept(peer)
      peer:read_start(function(_, data) if not data and not peer:is_closing() then peer:close() end end)
    end))
    local joiner = t:manager():start()
    local join = proc.begin({ cluster.symphony, "--socket", joiner.socket, "manager", "join",
      "127.0.0.1:" .. mute:getsockname().port, "--token", t.tokens.manager }, {})
    proc.run_for(0.3)
    assert.is_nil(join.process.code, join.out .. join.err)
    assert.equal(0, joiner:stop())
    cluster.wait_for("the join's end", 10, join.ended)
    assert.not_equal(0, join.process.code)
    mute:close()
    assert.is_nil(uv.fs_stat(joiner.dir .. "/key.json"))
  end))

  it("hands its leadership over at SIGTERM under a load of writes, and each of them gets a clear answer",
    cluster.scenario(function(t)
    t:cluster(3)
    local codes = { no_quorum = true, not_leader = true, outcome_unknown = true, busy = true, closed = true }
    for _ = 1, 3 do
      local leader = t:leader()
      local writers = load.start(t.managers, 12)
      writers:wait_progress(10 * cluster.patience)
      local code, seconds = leader:stop()
      assert.equal(0, code, leader:log_tail(20))
      assert.is_true(seconds < 5 * cluster.patience, ("it took %.1f s"):format(seconds))
      writers:wait_progress(5 * cluster.patience)
      local successor = t:leader()
      assert.not_equal(leader, successor)
      leader:start()
      writers:wait_progress(5 * cluster.patience)
      writers:stop()
      for _, failure in ipairs(writers.failures) do
        if failure.err then
          -- A connection may end under a request that has just been sent; only that of who is going away does.
          assert.equal(leader, failure.at, failure.err)
        else
          local doc = json.decode(failure.body)
          assert.is_true(failure.status == 503 and doc and codes[doc.error.code] or false, failure.body)
          assert.is_true(#doc.error.message > 5, failure.body)
        end
      end
      for _, m in ipairs(t.managers) do writers:check(m) end
    end
  end))

  it("that could not begin tries again as if nothing had been", cluster.scenario(function(t)
    local m = t:manager():start()
    local function fails_with(code)
      local failure = m:fails("manager", "init")
      assert.equal(code, failure.code, failure.message)
      assert.is_nil(uv.fs_stat(m.dir .. "/key.json"))
      assert.is_nil(uv.fs_stat(m.dir .. "/raft"))
      assert.is_true(proc.port_is_free(m.remote_port))
    end
    local taken = {}
    for _, port in ipairs { m.remote_port, m.raft_port } do
      taken[port] = uv.new_tcp()
      assert(taken[port]:bind("127.0.0.1", port))
      assert(taken[port]:listen(1, function() end))
    end
    assert.equal("in_use", (m:fails("manager", "init")).code)
    taken[m.remote_port]:close()
    proc.run_for(0.02)
    for _ = 1, 5 do fails_with("in_use") end -- raft's port: store and doors were open
    taken[m.raft_port]:close()
    proc.run_for(0.02)
    m:json("manager", "init")
    put(m, "a", "b")
  end))
end)

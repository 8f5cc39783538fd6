local fake = require "spec.unit.fake"

-- Every client certificate is known.
fake.module("store", { get = function(key) return key:find("^/client/") and { value = '{"role": "operator"}' } end })

local ran -- what the command below was called with
local behave -- what it does
package.loaded["symphony.cli.commands.kv"] = {
  name = "kv",
  summary = "Keys",
  commands = {
    {
      name = "put",
      summary = "Write a key",
      args = function(parser)
        parser:argument("key")
        parser:argument("value"):args("?")
        parser:option("--ttl"):convert(tonumber)
        parser:option("--uses"):convert(function(text)
          local n = math.tointeger(tonumber(text))
          if not n or n < 0 then return nil, ("'%s' is no whole number"):format(text) end
          return n
        end)
        parser:flag("--yes")
      end,
      run = function(ctx)
        ran = ctx
        return behave(ctx)
      end,
    },
    { name = "ls list", summary = "List keys", run = function() end },
  },
}
for _, name in ipairs { "manager", "token", "node", "txn", "cluster" } do
  package.loaded["symphony.cli.commands." .. name] = { name = name, summary = name, run = function() end }
end

local async = require "symphony.async"
local errors = require "symphony.errors"
local json = require "symphony.json"
local parser = require "symphony.cli.parser"
local render = require "symphony.cli.render"
local router = require "symphony.api.router"
local runner = require "symphony.cli.runner"

describe("the parser", function()
  it("finds the command and its arguments", function()
    local parsed = assert(parser.parse { "--json", "kv", "put", "k", "v", "--ttl", "5", "--timeout=1.5" })
    assert.same({ "kv", "put" }, parsed.path)
    assert.equal("put", parsed.spec.name)
    assert.same({ "k", "v", 5 }, { parsed.args.key, parsed.args.value, parsed.args.ttl })
    assert.same({ true, 1.5 }, { parsed.json, parsed.timeout })
    assert.is_nil(parsed.args["@1"])
    assert.same({ "kv", "ls" }, parser.parse({ "kv", "list" }).path)
    assert.equal("-5", parser.parse({ "kv", "put", "k", "--", "-5" }).args.value)
    assert.is_nil(parser.parse({}).spec)
    assert.is_true(parser.parse({ "--version" }).version)
  end)

  it("leaves no trace from one line to the next", function()
    assert.equal("v", parser.parse({ "kv", "put", "k", "v", "--yes" }).args.value)
    local parsed = parser.parse { "kv", "put", "k" }
    assert.same({ nil, nil }, { parsed.args.value, parsed.args.yes })
  end)

  local function wrong(message, hint, ...)
    local parsed, err = parser.parse { ... }
    assert.is_nil(parsed)
    assert.equal("usage", err.code)
    assert.truthy(err.message:find(message, 1, true), err.message)
    assert.truthy(err.hint:find(hint, 1, true), err.hint)
  end

  it("says what is wrong and what to do", function()
    wrong("unknown command 'kw'", "did you mean 'kv'?", "kw")
    wrong("unknown command 'pot'", "did you mean 'put'?", "kv", "pot")
    wrong("unknown option '--tll'", "did you mean '--ttl'?", "kv", "put", "k", "--tll", "1")
    wrong("missing argument 'key'", "symphony help kv put", "kv", "put")
    wrong("a command is required", "symphony help kv", "kv")
    wrong("too many arguments", "symphony help kv put", "kv", "put", "a", "b", "c")
    wrong("no number of seconds", "symphony help", "--timeout", "soon")
    wrong("no number of seconds", "symphony help", "--timeout=0")
    wrong("unknown command 'x%s'", "symphony help", "x%s")
    -- A number below zero is no option.
    wrong("'-1' is no whole number", "symphony help kv put", "kv", "put", "k", "--uses", "-1")
    wrong("'-1.5' is no whole number", "symphony help kv put", "kv", "put", "k", "--uses", "-1.5", "--yes")
    wrong("'-1' is no number of seconds", "symphony help", "--timeout", "-1", "kv", "put", "k")
    wrong("unknown option '-1'", "behind --", "kv", "put", "k", "-15")
    wrong("unknown option '-1'", "behind --", "kv", "put", "k", "--yes", "-1")
    wrong("unknown option '-1'", "behind --", "kv", "put", "k", "--uses", "1", "-1", "--", "--uses", "-1")
    assert.equal(-5, parser.parse({ "kv", "put", "k", "--ttl", "-5" }).args.ttl)
  end)

  it("gives help without printing or ending", function()
    assert.truthy(parser.parse({ "kv", "put", "--help" }).help:find("Usage: symphony kv put", 1, true))
    assert.truthy(parser.parse({ "-h" }).help:find("Commands:", 1, true))
    assert.truthy(parser.help({ "kv" }):find("Write a key", 1, true))
    local text, err = parser.help { "nothing" }
    assert.is_nil(text)
    assert.equal("usage", err.code)
    assert.truthy(parser.overview():find("kv +Keys"))
  end)
end)

describe("render", function()
  it("aligns tables", function()
    assert.equal("ID   NAME  UP\n1    a     yes\n100  \u{e9}\u{e9}    no\n-    -     -\n",
      render.table({ "ID", "NAME", "UP" }, { { 1, "a", true }, { 100, "\u{e9}\u{e9}", false }, {} }))
    assert.equal("\27[1mA\27[0m\n1\n", render.table({ "A" }, { { 1 } }, true))
  end)

  it("lets no value move the cursor", function()
    assert.equal("A\n\\x1b[2Jx\\x0ay\n", render.table({ "A" }, { { "\27[2Jx\ny" } }))
    assert.equal("symphony: a\\x1b]0;x (io)\n", render.error(errors.new("io", "a\27]0;x"), {}))
  end)

  it("follows a description, or finds one", function()
    local how = { columns = { "K" }, row = function(item) return { item.k } end, empty = "nothing there" }
    assert.equal("K\n1\n2\n", render.result({ { k = 1 }, { k = 2 } }, how, {}))
    assert.equal("nothing there\n", render.result({}, how, {}))
    assert.equal("x=1\n", render.result({ x = 1 }, { text = function(d) return "x=" .. d.x end }, {}))
    assert.equal("A  B\n1  -\n-  2\n", render.result({ { a = 1 }, { b = 2 } }, nil, {}))
    assert.equal("a    1\nlong  x\n", (render.result({ a = 1, long = "x" }, nil, {}):gsub("a  +", "a    ")))
    assert.equal("one\ntwo\n", render.result({ "one", "two" }, nil, {}))
    assert.equal("", render.result(nil, nil, {}))
    assert.equal("text\n", render.result("text", nil, {}))
  end)

  it("writes JSON whatever the description", function()
    assert.equal('[{"a":1,"b":null}]\n', render.result({ { b = json.null, a = 1 } }, { columns = {} }, { json = true }))
    assert.equal("{}\n", render.result(true, nil, { json = true }))
    assert.equal('{"error":{"code":"io","hint":"h","message":"m"}}\n',
      render.error(errors.new("io", "m", "h"), { json = true }))
  end)

  it("shows errors with their hint", function()
    assert.equal("symphony: no quorum (no_quorum)\n  hint: wait\n",
      render.error(errors.new("no_quorum", "no quorum", "wait"), {}))
    assert.equal("\27[1;31msymphony:\27[0m m (io)\n", render.error(errors.new("io", "m"), { color_err = true }))
    assert.equal("symphony: a\n  b (io)\n  hint: c\n        d\n", render.error(errors.new("io", "a\nb", "c\nd"), {}))
  end)
end)

describe("the runner", function()
  router.reset()
  runner.routes(router)

  local function start(argv, fields, peer)
    local body = { argv = argv }
    for k, v in pairs(fields or {}) do
      body[k] = v
    end
    local req = fake.request("POST", "/v1/command", { body = json.encode(body), peer = peer })
    router.dispatch(req)
    return req
  end

  local function run(...)
    local req = start(...)
    fake.loop()
    assert.is_true(req.finished)
    local result = { out = "", err = "" }
    for _, message in ipairs(req:messages()) do
      result.out = result.out .. (message.out or "")
      result.err = result.err .. (message.err or "")
      result.exit = message.exit or result.exit
    end
    return result, req
  end

  it("runs nothing for who is not at the control socket, and nothing that belongs into the client", function()
    for _, ou in ipairs { "operator", "reader" } do
      local req = start({ "version" }, nil, { cn = "somebody", ou = ou })
      assert.equal(403, req.status, ou)
    end
    local req = start { "lua", "-e", "return 1" }
    assert.equal(400, req.status)
  end)

  it("runs a command and streams what it prints", function()
    behave = function(ctx)
      ctx.out("a")
      async.sleep(1)
      ctx.err("b")
      return { key = ctx.args.key }
    end
    local result, req = run({ "kv", "put", "k" }, { tty = true, width = 80 })
    assert.same({ out = "akey  k\n", err = "b", exit = 0 }, result)
    assert.equal("application/x-ndjson", req.ctype)
    assert.same({ true, 80, 0 }, { ran.client.tty, ran.client.width, ran.client.uid })
  end)

  it("gives JSON when asked to", function()
    behave = function()
      return { b = 1, a = json.array() }
    end
    assert.equal('{"a":[],"b":1}\n', run({ "kv", "put", "k", "--json" }).out)
  end)

  it("ends with the status that fits the error", function()
    behave = function()
      return nil, errors.new("no_quorum", "alone", "wait")
    end
    assert.same({ out = "", err = "symphony: alone (no_quorum)\n  hint: wait\n", exit = 5 }, run { "kv", "put", "k" })
    local result = run { "kv", "put", "k", "--json" }
    assert.same({ code = "no_quorum", message = "alone", hint = "wait" }, json.decode(result.err).error)
    behave = function()
      errors.raise("denied", "no")
    end
    assert.equal(4, run({ "kv", "put", "k" }).exit)
    assert.equal(2, run({ "kv", "putt" }).exit)
    assert.equal("usage", json.decode(run({ "kv", "putt", "--json" }).err).error.code)
    behave = function(ctx)
      ctx.status = 9
    end
    assert.equal(9, run({ "kv", "put", "k" }).exit)
  end)

  it("logs bugs and says that they are", function()
    fake.logged = {}
    behave = function()
      error("oops")
    end
    local result = run { "kv", "put", "k" }
    assert.equal(1, result.exit)
    assert.truthy(result.err:find("(internal)", 1, true))
    assert.truthy(fake.logged[1]:find("traceback", 1, true))
  end)

  it("prints help and the version", function()
    assert.truthy(run({ "kv", "put", "-h" }).out:find("Usage:", 1, true))
    assert.equal("symphony 1.2.3\n", run({ "--version" }).out)
    assert.truthy(run({}).out:find("Commands:", 1, true))
  end)

  it("keeps any bytes", function()
    behave = function(ctx)
      ctx.out("\xff\0x")
    end
    local _, req = run { "kv", "put", "k" }
    assert.equal("/wB4", req:messages()[1].out64)
  end)

  it("cuts long output between characters", function()
    local long = ("\u{e9}x"):rep(60000)
    behave = function(ctx)
      ctx.out(long)
    end
    local result, req = run { "kv", "put", "k" }
    assert.equal(long, result.out)
    assert.is_true(#req:messages() > 2)
  end)

  it("keeps --timeout", function()
    behave = function()
      async.event():wait()
    end
    local result = run { "kv", "put", "k", "--timeout", "0.01" }
    assert.equal(1, result.exit)
    assert.truthy(result.err:find("(timeout)", 1, true))
  end)

  it("cancels when the client goes away", function()
    local ended, told = false, false
    behave = function(ctx)
      local _ <close> = setmetatable({}, {
        __close = function()
          ended = ctx.cancelled()
        end,
      })
      ctx.on_cancel(function()
        told = true
      end)
      async.event():wait()
    end
    local req = start { "kv", "put", "k" }
    assert.is_false(ended)
    req:leave()
    fake.loop()
    assert.is_true(ended)
    assert.is_true(told)
  end)

  it("asks", function()
    local yes
    behave = function(ctx)
      yes = ctx.confirm("Really?")
    end
    run { "kv", "put", "k" }
    assert.is_false(yes)
    run { "kv", "put", "k", "--yes" }
    assert.is_true(yes)

    for _, given in ipairs { true, false } do
      local req = start({ "kv", "put", "k" }, { interactive = true })
      local asked = req:messages()[1]
      assert.equal("Really?", asked.ask)
      local function reply(peer)
        local answer = fake.request("POST", "/v1/command/answer",
          { body = json.encode { id = asked.id, yes = given }, peer = peer })
        router.dispatch(answer)
        return answer.status
      end
      assert.equal(404, reply { unix = true, uid = 77 })
      local unix = { unix = true, uid = 0 }
      require("luv").run("once") -- the question is out
      assert.equal(200, reply(unix))
      fake.loop()
      assert.equal(given, yes)
      assert.equal(404, reply(unix))
    end
  end)

  it("refuses what is no command line", function()
    for _, argv in ipairs { "x", 1, { 1 }, { { "x" } }, { { base64 = 1 } } } do
      local req = start(argv)
      fake.loop()
      assert.equal(400, req.status)
    end
  end)

  it("is not for everybody", function()
    local req = start({ "kv" }, nil, { tls = true })
    assert.equal(401, req.status)
    req = start({ "kv" }, nil, { tls = true, cn = "r", ou = "reader" })
    assert.equal(403, req.status)
  end)
end)

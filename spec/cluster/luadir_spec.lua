-- --lua-dir: commands and services of the operator's own, and `symphony reload`.
local cluster = require "spec.support.cluster"
local http = require "spec.support.http"
local json = require "spec.support.json"
local proc = require "spec.support.proc"
local uv = require "luv"

local function folder(t, name)
  local dir = t:folder(name)
  for _, sub in ipairs { "commands", "services" } do assert(uv.fs_mkdir(dir .. "/" .. sub, 448)) end
  return dir
end

local HELLO = [[
local greet = require "greeting"
return {
  name = "hello",
  summary = "Say hello to somebody",
  description = "Says hello.\n\nExample:\n  symphony hello world",
  args = function(parser)
    parser:argument("who", "Whom to greet."):argname("NAME")
    parser:flag("--loud", "In capitals.")
  end,
  run = function(ctx)
    local text = greet(ctx.args.who)
    return { text = ctx.args.loud and text:upper() or text }, { text = function(d) return d.text end }
  end,
}]]

local COUNT = [[
return { name = "tally", summary = "Counts", commands = {
  { name = "keys", summary = "Of the users", run = function()
    local rows = require("symphony.cluster.state").list_raw("/kv/")
    return { count = #rows }
  end },
  { name = "fail ruin", summary = "Fails", run = function() return nil + 1 end },
  { name = "refuse", summary = "Refuses", run = function()
    return nil, require("symphony.errors").new("conflict", "not now", "later")
  end },
} }]]

local function failed(list, file)
  for _, row in ipairs(list.failed) do
    if row.file == file then return row end
  end
end

describe("--lua-dir", function()
  it("brings commands with help, errors and --json, and no shadows", cluster.scenario(function(t)
    local dir, second = folder(t, "own"), folder(t, "more")
    proc.write_file(dir .. "/greeting.lua", "return function(who) return 'hello, ' .. who end")
    proc.write_file(dir .. "/commands/hello.lua", HELLO)
    proc.write_file(dir .. "/commands/tally.lua", COUNT)
    proc.write_file(dir .. "/commands/kv.lua", "return { name = 'kv', run = function() end }")
    proc.write_file(dir .. "/commands/broken.lua", "return {\n  name = 'broken',\n  run = = 1,\n}")
    proc.write_file(dir .. "/commands/raises.lua", "local x\nreturn x.y")
    proc.write_file(dir .. "/commands/args.lua", "return { run = print, args = function(p) p:optoin('--x') end }")
    proc.write_file(dir .. "/commands/.hidden.lua", "error 'not to be loaded'")
    proc.write_file(second .. "/commands/hello.lua", "return { run = function() return 1 end }")
    local m = t:manager():start("--lua-dir", dir, "--lua-dir", second)
    m:json("manager", "init")
    m:json("kv", "put", "a", "1")
    assert.equal("hello, world\n", m:cli("hello", "world").out)
    assert.same({ text = "HELLO, YOU" }, m:json("hello", "you", "--loud"))
    assert.same({ count = 1 }, m:json("tally", "keys"))
    assert.equal("1", m:json("kv", "get", "a").value) -- kv is symphony's own
    -- Help, of all kinds.
    for _, words in ipairs { { "help", "hello" }, { "hello", "--help" }, { "hello", "-h" } } do
      local shown = m:cli(table.unpack(words))
      assert.equal(0, shown.code, shown.err)
      assert.truthy(shown.out:find("Usage: symphony hello", 1, true), shown.out)
      assert.truthy(shown.out:find("--loud", 1, true), shown.out)
    end
    assert.truthy(m:cli("help", "tally", "keys").out:find("Usage: symphony tally keys", 1, true))
    for _, words in ipairs { { "help" }, { "--help" }, {} } do
      local shown = m:cli(table.unpack(words)).out
      assert.truthy(shown:find("hello +Say hello to somebody"), shown)
      assert.truthy(shown:find("tally +Counts"), shown)
    end
    -- What is wrong in a line is said as for others.
    local err, result = m:fails("hello")
    assert.same({ "usage", 2 }, { err.code, result.code })
    assert.truthy(err.hint:find("symphony help hello", 1, true), err.hint)
    err = m:fails("helo", "x")
    assert.equal("unknown command 'helo'", err.message)
    assert.equal("did you mean one of these: 'hello' 'help'?", err.hint)
    assert.equal(2, select(2, m:fails("help", "helo")).code)
    assert.equal("conflict", m:fails("tally", "refuse").code)
    err = m:fails("tally", "fail")
    assert.equal("internal", err.code)
    assert.truthy(err.message:find("tally.lua:6:", 1, true), err.message)
    assert.truthy(err.hint:find(dir .. "/commands/tally.lua", 1, true), err.hint)
    -- What could not be taken in is in the log, and in what reload says.
    local again = m:cli("--json", "reload")
    assert.equal(1, again.code)
    local list = again.json
    assert.same({ "hello", "tally" }, { list.commands[1].name, list.commands[2].name })
    assert.equal(3, failed(list, dir .. "/commands/broken.lua").line)
    assert.equal(2, failed(list, dir .. "/commands/raises.lua").line)
    assert.truthy(failed(list, dir .. "/commands/raises.lua").message:find("nil value", 1, true))
    assert.equal(1, failed(list, dir .. "/commands/args.lua").line)
    assert.truthy(failed(list, dir .. "/commands/kv.lua").message:find("command of symphony itself", 1, true))
    assert.truthy(failed(list, second .. "/commands/hello.lua").message:find(dir .. "/commands/hello.lua", 1, true))
    assert.equal(5, #list.failed, json.encode(list.failed))
    for _, row in ipairs(list.failed) do
      assert.truthy(m:log():find(row.file, 1, true), row.file)
      assert.is_false(row.kept)
    end
    assert.equal(1, select(2, m:cli("reload").out:gsub("FAILED [^\n]*broken.lua:3: ", "")))
  end))

  it("takes a change at once, and keeps what was good", cluster.scenario(function(t)
    local dir = folder(t, "own")
    proc.write_file(dir .. "/greeting.lua", "return function(who) return 'hello, ' .. who end")
    proc.write_file(dir .. "/commands/hello.lua", HELLO)
    local m = t:manager():start("--lua-dir", dir)
    m:json("manager", "init")
    assert.equal("hello, x\n", m:cli("hello", "x").out)
    -- A change of the command, and of what it requires.
    proc.write_file(dir .. "/commands/hello.lua", (HELLO:gsub('"%-%-loud"', '"--quiet"')
      :gsub("args.loud", "args.quiet")))
    proc.write_file(dir .. "/greeting.lua", "return function(who) return 'good day, ' .. who end")
    assert.equal("hello, x\n", m:cli("hello", "x").out)
    local list = m:json("reload")
    assert.same({ 1, 0 }, { #list.commands, #list.failed })
    assert.equal("good day, x\n", m:cli("hello", "x").out)
    assert.equal("GOOD DAY, X\n", m:cli("hello", "x", "--quiet").out)
    assert.equal("usage", m:fails("hello", "x", "--loud").code)
    -- Broken, the one before stays; also when it is what is required that is broken.
    for file, text in pairs { ["commands/hello.lua"] = "return {", ["greeting.lua"] = "error 'no'" } do
      local good = proc.read_file(dir .. "/" .. file)
      proc.write_file(dir .. "/" .. file, text)
      local answer = assert(http.call(m.socket, "POST", "/v1/reload", "{}"))
      assert.equal(200, answer.status, answer.body)
      local row = failed(answer.json, dir .. "/commands/hello.lua")
      assert.is_true(row.kept, answer.body)
      assert.equal("good day, x\n", m:cli("hello", "x").out)
      proc.write_file(dir .. "/" .. file, good)
    end
    assert.equal(0, #m:json("reload").failed)
    -- A new one, and none.
    proc.write_file(dir .. "/commands/tally.lua", COUNT)
    assert.equal(2, #m:json("reload").commands)
    assert.same({ count = 0 }, m:json("tally", "keys"))
    assert(uv.fs_unlink(dir .. "/commands/hello.lua"))
    assert.equal(1, #m:json("reload").commands)
    assert.equal("usage", m:fails("hello", "x").code)
    -- Who asks.
    assert.equal(405, http.call(m.socket, "GET", "/v1/reload").status)
  end))

  it("brings commands to a daemon that is part of no cluster, and to workers", cluster.scenario(function(t)
    local dir = folder(t, "own")
    proc.write_file(dir .. "/commands/where.lua",
      "return { run = function() return { role = require('sym.sys').options().role } end }")
    local m, w = t:manager():start("--lua-dir", dir), t:worker():start("--lua-dir", dir)
    assert.same({ role = "manager" }, m:json("where"))
    assert.same({ role = "block" }, w:json("where"))
    assert.same({ commands = { m:json("reload").commands[1] }, services = {}, failed = {} }, w:json("reload"))
    -- Without any, there is nothing to load.
    local plain = t:manager():start()
    assert.same({ commands = {}, services = {}, failed = {} }, plain:json("reload"))
    assert.equal("usage", plain:fails("where").code)
    -- And without a daemon it is no command.
    local result = cluster.cli(t.root .. "/none.sock", "--json", "where")
    assert.same({ 2, "usage" }, { result.code, result.error.code })
  end))
end)

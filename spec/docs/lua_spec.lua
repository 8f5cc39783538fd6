-- docs/lua.md is what the comments say, has an entry for every function, and its examples give what they say.
local cluster = require "spec.support.cluster"
local json = require "spec.support.json"
local proc = require "spec.support.proc"
local uv = require "luv"
require "spec.unit.fake"

local docs = require "symphony.repl.docs"
local PROMPT, POLICY = docs.PROMPT, { "symphony.policy.reference" }

local function by_name(entries)
  local found = {}
  for _, entry in ipairs(entries) do
    assert.is_nil(found[entry.name], "twice: " .. entry.name)
    found[entry.name] = entry
  end
  return found
end

describe("docs/lua.md", function()
  it("is what the comments in the modules say", function()
    local result = proc.run { "scripts/lua-docs", "--check" }
    assert.equal(0, result.code, result.err)
    local text = assert(proc.read_file("docs/lua.md"))
    for _, entries in ipairs { docs.of(docs.PROMPT), docs.of(docs.ELSEWHERE), docs.parts() } do
      for name, entry in pairs(by_name(entries)) do
        assert.truthy(entry.title or entry.text ~= "", name .. " has no text")
        assert.truthy(text:find("`" .. (entry.signature or name), 1, true) or text:find("## " .. name, 1, true), name)
      end
    end
  end)

  it("has an entry for every function at the prompt, and no other", function()
    local env = require("symphony.repl.env").new({})
    local entries = by_name(docs.of(PROMPT))
    local aliases, seen, count = {}, { [env] = true }, 0
    for name, entry in pairs(entries) do
      local v = env
      for word in name:gmatch("[^.]+") do v = rawget(v, word) end
      if entry.signature then
        assert.is_function(v, name .. " is described, and not there")
        aliases[v] = name
      elseif name ~= "prompt" then
        assert.is_table(v, name)
      end
    end
    local function check(t, lua, above)
      for name, v in next, t do
        local own = lua == nil or lua[name] == nil
        if type(v) == "function" and own then
          count = count + 1
          assert.truthy(aliases[v], above .. name .. " has no entry")
        elseif type(v) == "table" and not seen[v] then
          seen[v] = true
          assert.truthy(not own or entries[above .. name], above .. name .. " has no entry")
          check(v, not own and lua[name] or nil, above .. name .. ".")
        end
      end
    end
    check(env, _G, "")
    assert.is_true(count > 20, count)
  end)

  it("has examples for the prompt that give what they say", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    t:wait_voters(1, m)
    cluster.wait_for("the node to be ready", 10, function()
      local row = m:json("node", "ls")[1]
      return row.status == "ready", row
    end)
    local session, count = "new", 0
    local function run(code)
      local answer = m:http("POST", "/v1/lua", json.encode { code = code, session = session })
      local seen = { out = "", result = "" }
      for line in answer.body:gmatch("[^\n]+") do
        local message = json.decode(line)
        for name, value in pairs(message or {}) do
          seen[name] = (name == "out" or name == "result") and seen[name] .. value or value
        end
      end
      session = seen.session or session
      return seen
    end
    for _, entry in ipairs(docs.of(PROMPT)) do
      for _, example in ipairs(docs.examples(entry)) do
        local seen = run(example.code)
        assert.equal(0, seen.exit, example.code .. ": " .. json.encode(seen))
        if example.prints then assert.equal(example.prints .. "\n", seen.result, example.code) end
        count = count + 1
      end
    end
    assert.is_true(count > 30, count)
  end))

  it("has an entry for every function of a policy, and no other", function()
    local there = {}
    for _, file in ipairs { "env", "env_state", "env_decision" } do
      local code = assert(proc.read_file("src/sandbox/" .. file .. ".c"))
      for name in code:match("static const luaL_Reg functions%[%] = (%b{})"):gmatch('{"([%l_]+)"') do
        there[name] = true
      end
      for name in (code:match("} commands%[%] = (%b{})") or ""):gmatch('{"([%l_]+)", "[%l.]+", {') do
        there[name] = true
      end
    end
    assert.is_true(there.refuse and there.kv_put)
    for name in pairs(there) do assert.truthy(by_name(docs.of(POLICY))[name], name .. " has no entry") end
    for name, entry in pairs(by_name(docs.of(POLICY))) do
      assert.truthy(entry.title or there[name], name .. " is described, and not there")
    end
  end)

  it("has examples of policies that give what they say", cluster.scenario(function(t)
    local m = t:cluster(1)[1]
    local count = 0
    local function test(text)
      local path = t.root .. "/policy.lua"
      proc.write_file(path, text)
      local result = m:cli("policy", "test", path)
      assert.equal(0, result.code, text .. "\n" .. result.out .. result.err)
      count = count + 1
    end
    for _, entry in ipairs(docs.of(POLICY)) do
      local lines = {}
      for i, example in ipairs(docs.examples(entry)) do
        local code, prints = example.code, example.prints
        lines[i] = prints and ("if (%s) ~= (%s) then return refuse(%q) end"):format(code, prints, code) or code
      end
      if entry.title and #lines > 0 then
        test(table.concat(lines, "\n"))
      elseif #lines > 0 then
        test(([[return { summary = "an example", hooks = { ["admit.change"] = function() %s end },
          selftest = { { name = "as it says", hook = "admit.change", expect = {},
            input = { kind = "kv", key = "k", action = "put", new = "v" },
            state = { ["/kv/team/a"] = "1", ["/kv/team/b"] = "2" } } } }]]):format(table.concat(lines, "\n")))
      end
    end
    assert.is_true(count > 10, count)
  end))

  local parts = by_name(docs.parts())

  it("has an entry for every function that own services and commands may call", function()
    local count = 0
    for _, part in ipairs(docs.PARTS) do
      local source = assert(proc.read_file(assert(package.searchpath(part.module, package.path))))
      for name in source:gmatch("\nfunction M%.([%w_]+)") do
        local shown = part.functions == true or (part.functions or {})[name]
        if shown then
          count = count + 1
          assert.truthy(parts[part.name .. "." .. name], part.name .. "." .. name .. " has no entry")
        end
      end
      for name in pairs(type(part.functions) == "table" and part.functions or {}) do
        assert.truthy(parts[part.name .. "." .. name], name .. " is to be described, and is not there")
      end
      for object, name in source:gmatch("\nfunction (%u%w*):(%w+)") do
        local entry = object:lower() .. ":" .. name
        assert.truthy(part.functions ~= true or parts[entry], entry .. " has no entry")
      end
    end
    assert.is_true(count > 25, count)
  end)

  it("has all that a service and a schema may say", function()
    local registry, schema = require "symphony.services.registry", require "symphony.services.schema"
    local asked
    -- A table that notes what it is asked for.
    local function spy(t)
      return setmetatable({}, { __index = function(_, name)
        asked[name] = true
        return t[name]
      end })
    end
    local function check(entry)
      local count = 0
      for name in pairs(asked) do
        count = count + 1
        assert.truthy(entry.text:find("\n  " .. name .. "%f[,%s]") or entry.text:find("%s%s" .. name .. "%s%s")
          or entry.text:find(", " .. name .. "%s%s"), ("%s: %s is not described"):format(entry.name, name))
      end
      return count
    end
    asked = { complete = true }
    local function nothing() return {} end
    assert(registry.check(spy { kind = "spied", reconcile = nothing, actual = nothing, resources = {
      spied = spy { schema = {} } } }))
    asked.schema = nil -- described with resources
    assert.is_true(check(parts.service) > 15)
    for name in parts.service.text:gmatch("\n  (%l+)  ") do
      assert.truthy(asked[name], name .. " is described, and nobody asks for it")
    end

    asked = {}
    for kind, value in pairs { string = "a", integer = 1, number = 1.5, boolean = true, array = { "a" },
      map = { a = "b" }, object = { a = "b" } } do
      local text = { type = "string" }
      local fields = { field = spy { type = kind, of = text, fields = { a = text } } }
      schema.check_schema(fields, "spied")
      assert(schema.check(fields, { field = value }))
      assert(schema.check(fields, {}))
    end
    asked.fields = nil -- described with type
    assert.is_true(check(parts.schema) > 8)
  end)

  it("has what the functions of a service are given, and examples that work", cluster.scenario(function(t)
    local dir, count = t:folder "own", 0
    for _, name in ipairs { "commands", "services" } do assert(uv.fs_mkdir(dir .. "/" .. name, 448)) end
    local examples = {}
    for _, entry in pairs(parts) do
      for _, example in ipairs(docs.examples(entry)) do
        local code = example.code -- or a table of fields
        if code:find("[=(]") and load("return {" .. code .. "}") then examples[#examples + 1] = code end
      end
    end
    assert.same({ 'commands = { run, commands.ls("process"), commands.inspect("process"), commands.rm("process") }' },
      examples)
    proc.write_file(dir .. "/services/process.lua", ([[
      local commands = require "symphony.services.commands"
      local run = { name = "run", args = commands.write_options, run = function(ctx)
        return commands.create(ctx, "process", { id = "one", spec = {} })
      end }
      return { kind = "process", resources = { process = {} },
        actual = function(ctx) return ctx.memory end,
        reconcile = function(ctx, desired)
          ctx.memory[ctx.id] = desired and true
          local names = {}
          for name in pairs(ctx) do names[#names + 1] = name end
          return { state = "running", message = table.concat(names, " ") }
        end, %s }]]):format(examples[1]))
    local m = t:cluster(1, { flags = { "--lua-dir", dir } })[1]
    local w = t:join_workers(1, m, { flags = { "--lua-dir", dir } })
    t:wait_status(w, "ready", m)
    m:json("process", "run", "--wait")
    assert.equal("one", m:json("process", "ls")[1].id)
    for name in m:json("process", "inspect", "one")[1].nodes[1].message:gmatch("%S+") do
      count = count + 1
      assert.truthy(parts.ctx.text:find("%f[%w]" .. name .. "%f[%W]"), name .. " is not described")
    end
    assert.is_true(count > 7, count)
    m:json("process", "rm", "one")
  end))
end)

--- The client's side of `symphony lua`.
local async = require "symphony.async"
local errors = require "symphony.errors"
local lines = require "symphony.lines"
local render = require "symphony.cli.render"
local sys = require "sym.sys"

local M = {}

local function complain(ctx, err)
  if ctx.json or not err.trace then
    ctx.err(render.error(errors.new(err.code, err.message, err.hint), ctx))
  else
    ctx.err(err.trace .. "\n" .. (err.hint and "  hint: " .. err.hint .. "\n" or ""))
  end
end

-- Sends a piece of code and prints what comes: its status, whether more input is wanted, the session. An error that
-- came with `more` is kept back: the line may only be unfinished.
local function run(ctx, request)
  local seen = {}
  local stream = lines.of(function(message)
    local text = message.out or message.out64 and require("sym.crypto").unbase64(message.out64) or message.result
    if text then
      ctx.out(text)
    elseif message.note then
      ctx.err(message.note .. "\n")
    elseif message.error and not seen.more then
      complain(ctx, message.error)
    end
    seen.late = message.error or seen.late
    seen.more = message.more or seen.more
    seen.session = message.session or seen.session
    seen.exit = message.exit or seen.exit
  end)
  request.json = ctx.json
  local _, err = ctx.call("POST", "/v1/lua", request, {
    on_data = function(chunk)
      stream(chunk)
      io.stdout:flush()
    end,
  })
  if err then
    return nil, err
  elseif not seen.exit then
    return nil, errors.new("protocol", "the daemon's answer has no end")
  end
  return seen
end

-- Code that is given as a whole: what is unfinished is an error.
local function batch(ctx, request)
  local seen, err = run(ctx, request)
  if not seen then
    return nil, err
  elseif seen.more then
    complain(ctx, seen.late)
  end
  ctx.status, ctx.printed = seen.exit, true
end

local function read_line(prompt)
  io.stdout:write(prompt)
  io.stdout:flush()
  return io.read("l")
end

local function interactive(ctx)
  local session, pending = "new", nil
  ctx.out(("symphony %s: Lua in the daemon at %s; help() says what there is, Ctrl-D ends\n"):format(sys.version,
    ctx.socket))
  while true do
    local line = read_line(pending and ">> " or "> ")
    if not line then
      ctx.out("\n")
      return
    end
    local code = pending and pending .. "\n" .. line or line
    pending = nil
    if code:match("%S") then
      local seen, err = run(ctx, { code = code, session = session, name = "=lua" })
      if seen then
        session = seen.session or session
        pending = seen.more and code or nil
      else
        complain(ctx, err)
        if err.code == "not_found" then
          session = "new"
        elseif err.code == "no_daemon" then
          return nil, err
        end
      end
    end
  end
end

local function read_script(path)
  local text, err = sys.read_file(path)
  if not text then
    return nil, err
  end
  return (text:gsub("^#[^\n]*", ""))
end

--- Runs the command `lua`; returns nil, err or nothing.
function M.run(ctx)
  local args = ctx.args
  if args.eval then
    return batch(ctx, { code = args.eval, name = "=-e" })
  elseif args.script and args.script ~= "-" then
    local code, err = read_script(args.script)
    if not code then
      return nil, err
    end
    return batch(ctx, { code = code, name = "@" .. args.script, args = args.arguments })
  elseif args.script == "-" or not ctx.interactive then
    return batch(ctx, { code = io.read("a"), name = "=stdin", args = args.arguments })
  end
  async.sleep(0) -- the loop's time is up to date before the first wait
  return interactive(ctx)
end

return M
